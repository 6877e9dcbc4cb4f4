"""How long a network takes in its runtime, so that the answer holds.

`session` says what can be timed, `paired` times two networks in turns and says how sure it is, `machine` says where and
how busy it was, `energy` reads the machine's counter of energy, where it has one.
"""

from autocompress.targets.timing.energy import EnergyCounter, MeasuredEnergy, energy_counter
from autocompress.targets.timing.limit import TimeLimit
from autocompress.targets.timing.machine import Machine, Waiting, this_machine, threads_in_words
from autocompress.targets.timing.paired import LEADER, VARIANT, Effort, Interval, PairedTiming, Times, time_pair
from autocompress.targets.timing.session import Session

__all__ = [
    "LEADER",
    "VARIANT",
    "Effort",
    "EnergyCounter",
    "Interval",
    "Machine",
    "MeasuredEnergy",
    "PairedTiming",
    "Session",
    "TimeLimit",
    "Times",
    "Waiting",
    "energy_counter",
    "this_machine",
    "threads_in_words",
    "time_pair",
]
