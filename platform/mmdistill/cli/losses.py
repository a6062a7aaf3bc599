"""Every loss as a function to import."""

from typing import Any

from mmdistill.cli.printing import print_json


def show_losses(*, as_json: bool) -> int:
    """Print every loss with its source, its settings and what it needs."""
    found = _losses()
    if as_json:
        print_json(found)
        return 0
    for entry in found:
        print(f"{entry['key']}: {entry['path']}")
        print(f"  source    {entry['source']}")
        print(f"  needs     {', '.join(entry['needs'])}")
        print(f"  tensors   {', '.join(_tensors(entry['tensors']))}")
        print(f"  tasks     {entry['tasks']}")
        settings = ", ".join(_setting(name, setting) for name, setting in entry["settings"].items())
        print(f"  settings  {settings or 'none'}\n")
    return 0


def _losses() -> list[dict[str, Any]]:
    from mmdistill.losses.base import LOSSES
    from mmdistill.registry import import_submodules

    import_submodules("mmdistill.losses")
    return [
        {
            "key": key,
            "path": entry.path,
            "source": entry.source,
            "needs": entry.needs,
            "tasks": entry.tasks,
            "tensors": entry.tensors,
            "settings": entry.settings,
        }
        for key, entry in LOSSES.items()
    ]


def _tensors(tensors: dict[str, bool]) -> list[str]:
    return [name if required else f"[{name}]" for name, required in tensors.items()]


def _setting(name: str, setting: Any) -> str:
    default = "required" if setting.required else _value(setting.default)
    if setting.range is not None:
        return f"{name} {default} ({setting.range[0]:g} to {setting.range[1]:g})"
    return f"{name} {default} ({', '.join(setting.choices)})" if setting.choices else f"{name} {default}"


def _value(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)
