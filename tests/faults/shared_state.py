"""Memory shared by a training and its test: what the training does now, or did when killed."""

import mmap
import struct
from pathlib import Path

OTHER, STEP, EVALUATION, CHECKPOINT, MODEL = range(5)
PHASES = ("start or end", "step", "evaluation", "save of a checkpoint", "save of the model")
SLOTS = (
    "phase",
    "step",
    "saved",
    "point",
    "steps",
    "evaluations",
    "checkpoints",
    "models",
    "ended",
)
BEGUN = {STEP: "steps", EVALUATION: "evaluations", CHECKPOINT: "checkpoints", MODEL: "models"}


class SharedState:
    """Integers in a mapped file.

    phase; step and last saved step; file operations within saves; how often each phase began;
    whether the run ended normally.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(
                struct.pack(f"<{len(SLOTS)}q", *(-1 if slot == "saved" else 0 for slot in SLOTS))
            )
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8 * len(SLOTS))

    def __getitem__(self, slot: str) -> int:
        return struct.unpack_from("<q", self._memory, 8 * SLOTS.index(slot))[0]

    def __setitem__(self, slot: str, value: int) -> None:
        struct.pack_into("<q", self._memory, 8 * SLOTS.index(slot), value)
