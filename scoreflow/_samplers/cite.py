"""Citations come out of the code."""

from __future__ import annotations

from scoreflow._samplers.step import SAMPLERS, get_sampler, resolve
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
            raise ValueError(
                f"nothing to cite is called {name!r}; samplers: {', '.join(sorted(SAMPLERS))}; works: {', '.join(references())}"
            ) from error
    return "\n\n".join(references()[key] for key in dict.fromkeys(keys))
