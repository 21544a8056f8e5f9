"""How many peers a node serves at the same time.  Pure rules; the measurements are in docs/performance.md.

Nobody can give on what is not complete: a crowd begins only after the time of one piece for each slot.
"""

from __future__ import annotations

MIN_SLOTS, PIECES_PER_SLOT = 4, 15
FIRST_SLOTS, PIECE_S = 2, 2.0
FEW_GIVERS = 3
MERE_TAKERS = 2


def usual_slots(pieces: int) -> int:
    """Slots for a package of so many pieces: few where there are few."""
    return max(MIN_SLOTS, pieces // PIECES_PER_SLOT)


def first_slots(pieces: int, piece_bytes: int, upload_rate_bytes: float) -> int:
    """Slots of who has no piece yet: as many as get a piece within `PIECE_S`, by the upload limit; 0 is none.

    Whoever has more pieces has as many slots, up to the usual ones.
    """
    usual = usual_slots(pieces)
    if not upload_rate_bytes:
        return usual
    return min(usual, max(FIRST_SLOTS, int(PIECE_S * upload_rate_bytes / piece_bytes)))


def slots_by_givers(slots: int, givers: int) -> int:
    """Slots of who misses something that so many give: where those are few, they and two who only take.

    Else the one node through which a site gets a package gives the same pieces to all its neighbours, and its
    partners at other sites, who wait for theirs, have no more to give.
    """
    return givers + MERE_TAKERS if givers < slots // FEW_GIVERS else slots
