"""What a recipe does without real samples: passes that would do nothing are left out, and one line says so."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.passes.base import AnyPass
from graphopt.passes.foreign import ForeignPass
from graphopt.passes.quantize.bias import BiasCorrection
from graphopt.passes.quantize.dynamic import Dynamic
from graphopt.passes.quantize.recurrent import Recurrent
from graphopt.passes.quantize.smooth import Smooth
from graphopt.passes.quantize.static import Static
from graphopt.passes.quantize.storage import Storage

_NEED_SAMPLES = (Static, Smooth, BiasCorrection)
_DO_WITHOUT = {
    Dynamic: "linear layers run in integers whose ranges are found at each call",
    Recurrent: "recurrent layers likewise",
    Storage: "convolutions and all other weights are stored in integers and computed with in float",
}


def unguided(passes: Sequence[AnyPass | ForeignPass]) -> tuple[list[AnyPass | ForeignPass], str]:
    """The passes that need no real samples, and what a user should know of it; an empty string where none is left out.

    Args:
        passes: of a recipe.
    """
    left_out = [each.name for each in passes if isinstance(each, _NEED_SAMPLES)]
    kept = [each for each in passes if not isinstance(each, _NEED_SAMPLES)]
    if not left_out:
        return kept, ""
    done = [text for kind, text in _DO_WITHOUT.items() if any(isinstance(each, kind) for each in kept)]
    return kept, f"without --data there is no {' or '.join(left_out)}{': ' if done else ''}{', '.join(done)}"
