"""Whatever a call borrows of a model, a loader or a learner is given back here, after success and after any failure."""
