"""What a study file may name, and the losses beneath."""

from typing import Any

from mmdistill.cli.printing import print_json


def show_datasets(*, as_json: bool) -> int:
    """Print every data set with its modalities."""
    found = _datasets()
    if as_json:
        print_json(found)
        return 0
    for entry in found:
        print(f"{entry['name']}: {entry['title']}")
        if entry["task"]:
            size = f", {entry['classes']} classes" if entry["classes"] else ""
            print(f"  task        {entry['task']}{size}")
            print(f"  modalities  {_shapes(entry['modalities'])}")
            print(f"  options     {', '.join(entry['options']) or 'none'}")
            print(f"  licence     {entry['licence']}")
        print()
    return 0


def _datasets() -> list[dict[str, Any]]:
    from mmdistill.data import DATASETS

    return [_dataset(name, kind) for name, kind in DATASETS.items()]


def _dataset(name: str, kind: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("task", "classes", "licence"))
    if any(field.is_required() for field in kind.model_fields.values()):
        title = "any Parquet file with a card: as `dataset`, give the path of its card.json or of the folder"
        return {"name": name, "title": title, **nothing, "modalities": {}, "options": []}
    card = kind().card()
    return {
        "name": name,
        "title": card.title or card.name,
        "task": card.task,
        "classes": card.classes,
        "licence": card.licence,
        "modalities": {key: list(modality.shape) for key, modality in card.modalities.items()},
        "options": list(kind.model_fields),
    }


def _shapes(modalities: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in modalities.items())


def show_recipes(*, as_json: bool) -> int:
    """Print every recipe with its source and what to know of it."""
    from mmdistill.pipeline.recipe import recipes

    found = [
        {
            "name": name,
            "title": recipe.title,
            "source": recipe.source,
            "provenance": recipe.provenance,
            "note": recipe.note,
            "inferred": list(recipe.inferred),
            "teachers": list(recipe.run.get("teachers", {}).get("pool", [])),
            "terms": list(recipe.run.get("terms", {})),
        }
        for name, recipe in recipes().items()
    ]
    if as_json:
        print_json(found)
        return 0
    for entry in found:
        print(f"{entry['name']}: {entry['title']}")
        print(f"  source    {entry['source']} ({entry['provenance']})")
        print(f"  teachers  {', '.join(entry['teachers']) or 'none'}")
        print(f"  terms     {', '.join(entry['terms']) or 'none beside the task loss'}")
        print(f"  inferred  {'; '.join(entry['inferred']) or 'nothing'}")
        print(f"  note      {entry['note']}\n")
    return 0


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
    if default is None:
        return "unset"
    return f"{default:g}" if isinstance(default, float) else str(default)
