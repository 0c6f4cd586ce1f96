"""The names that the fast.ai course's lessons use: `from lsuvcb.course import *` stands in for their own import lines."""
