"""Citations come out of the code."""

from __future__ import annotations

from scoreflow._core.check import suggestion
from scoreflow._samplers.step import LISTED, SAMPLERS, VARIANTS, get_sampler, resolve
from scoreflow._samplers.works import references


def cite(*names: str) -> str:
    """BibTeX for samplers (their default options) or keys of references.bib; each work once.

    Raises:
        ValueError: a name that is neither.
    """
    keys: list[str] = []
    for name in names:
        if name in references():
            keys.append(name)
            continue
        try:
            keys.extend(get_sampler(resolve(name)[0]).cites)
        except ValueError as error:
            lists = f"{LISTED}; the page of one, scoreflow show NAME, has the keys of its works"
            near = suggestion(name, [*SAMPLERS, *VARIANTS], lists, also=references())
            raise ValueError(f"nothing to cite is called {name!r}{near}") from error
    return "\n\n".join(references()[key] for key in dict.fromkeys(keys))
