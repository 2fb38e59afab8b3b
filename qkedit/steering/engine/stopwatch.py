"""The stopwatch of every room, by the name that the stations import."""

from qkedit.stopwatch import Stopwatch as Stopwatch
