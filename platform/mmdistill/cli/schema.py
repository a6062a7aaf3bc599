"""`mmdistill schema`: every table and column, with type, unit and meaning."""

from mmdistill.cli.printing import print_json
from mmdistill.records.rows import TABLES, schema_text
from mmdistill.records.schema import SCHEMA_VERSION, columns, meaning, type_text


def show_schema(*, as_json: bool) -> int:
    """Print the schema of all tables."""
    if not as_json:
        print(schema_text(), end="")
        return 0
    tables = {
        name: {
            "meaning": meaning(kind),
            "sorted_by": list(kind.order),
            "differs_between_runs": list(kind.varying),
            "columns": [
                {"name": one.name, "type": type_text(one), "nullable": one.optional, "meaning": one.meaning}
                for one in columns(kind)
            ],
        }
        for name, kind in TABLES.items()
    }
    print_json({"version": SCHEMA_VERSION, "tables": tables})
    return 0
