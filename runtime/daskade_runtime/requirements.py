"""Whether the packages that a pipeline names are installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version

REASON = "RequirementsMissing"


def told(whose: str, lacks: list[str]) -> str:
    """What is missing and what to do, for people."""
    shown = ", ".join(lacks[:20]) + (f" and {len(lacks) - 20} more" if len(lacks) > 20 else "")
    return f"{whose} lacks {shown}; install them in the image that the cluster names, or correct requirements"


def lacking(wanted: Iterable[str]) -> list[str]:
    """What is missing or of another version, in words. ``wanted`` are requirement specifiers."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: list[str] = []
    seen: set[str] = set()

    def check(text: str, requirement: Requirement) -> None:
        if str(requirement) in seen:
            return
        seen.add(str(requirement))
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"{requirement.name} (wanted: {text})")
            return
        # What stands behind a URL is not known: that there is one of the name has to do.
        if requirement.url is None and not requirement.specifier.contains(have, prereleases=True):
            found.append(f"{requirement.name} (wanted: {text}; there is {have})")
            return
        for extra in requirement.extras:
            for line in requires(requirement.name) or ():
                needed = Requirement(line)
                marker = needed.marker
                if marker is None or marker.evaluate({"extra": ""}):
                    continue  # comes with the package itself
                if marker.evaluate({"extra": extra}):
                    check(text, needed)

    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            found.append(f"{text} (not a requirement: {str(error).splitlines()[0]})")
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            check(text, requirement)
    return found
