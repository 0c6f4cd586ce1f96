"""One batch drawn without a trace."""

import random

import numpy as np
import pytest
import torch
from tiny import noise, seed_all
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, random_split

from lsuvcb.callback.loader_batch import drawn_here
from lsuvcb.engine.keeping.generators import held_by, rewound


class Noisy(Dataset):
    """Draws from every kind of generator, its own included, to make a sample."""

    def __init__(self):
        self.rng, self.legacy, self.python = np.random.default_rng(1), np.random.RandomState(2), random.Random(3)
        self.torch = torch.Generator().manual_seed(4)
        self.transforms = [{"inner": np.random.default_rng(5)}]

    def __len__(self):
        return 20

    def __getitem__(self, i):
        own = [self.rng.random(), self.legacy.random(), self.python.random(), self.transforms[0]["inner"].random()]
        return torch.tensor([*own, torch.rand(1, generator=self.torch).item(), noise()])


def _loaders():
    data = Noisy()
    own = torch.Generator().manual_seed(7)
    yield DataLoader(data, 4, shuffle=True)
    yield DataLoader(data, 4, shuffle=True, generator=own)
    yield DataLoader(data, 4, sampler=RandomSampler(data, generator=own))
    yield DataLoader(data, batch_sampler=[[3, 1], [2, 0]])
    yield [data[i] for i in range(4)]


@pytest.mark.parametrize("which", range(5))
def test_batch_drawn_inside_rewound_leaves_the_next_iteration_as_it_was(which):
    def run(draw):
        seed_all(0)
        loader = list(_loaders())[which]
        if draw:
            with rewound(loader), drawn_here(loader) as drawn:
                first = next(drawn)
        batches = list(loader)
        if draw:
            assert torch.equal(torch.as_tensor(first), batches[0])
        return torch.cat([b.flatten() for b in batches])

    assert torch.equal(run(False), run(True))


def test_rewound_restores_after_an_exception():
    state = torch.get_rng_state()
    with pytest.raises(IndexError), rewound([]):
        torch.rand(3).tolist().pop(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_a_loader_with_workers_are_drawn_without_them():
    loader = DataLoader(TensorDataset(torch.arange(8)), 4, num_workers=2, persistent_workers=True, prefetch_factor=3)
    with drawn_here(loader) as batches:
        assert [batch[0].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert loader._iterator is None
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, True)


def test_batches_of_a_generator_function_end_with_the_block():
    closed = []

    class Loader:
        def __iter__(self):
            try:
                yield 1
                yield 2
            finally:
                closed.append(True)

    with drawn_here(Loader()) as batches:
        assert next(batches) == 1
    assert closed == [True]


def test_batches_of_a_one_shot_iterator_stay_open():
    iterator = (i for i in range(3))
    with drawn_here(iterator) as batches:
        assert next(batches) == 0
    assert list(iterator) == [1, 2]


class Jitter:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, x):
        return x + self.rng.random()


class Composed:
    def __init__(self, *steps):
        self.transforms = list(steps)


class Pictures(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8


def test_generator_is_found_in_a_composed_transform_of_a_subset():
    jitter = Jitter()
    data = random_split(Pictures(Composed(Composed(jitter))), [6, 2])[0]
    assert jitter.rng in held_by([DataLoader(data, 2), None])


def test_generators_are_looked_for_in_no_more_things_than_agreed():
    deep = [[Jitter() for _ in range(60)] for _ in range(60)]
    assert len(held_by(deep)) == 3600
    assert len(held_by(deep, most=100)) < 100
