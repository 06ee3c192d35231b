"""`mreg lineage`: what a version came from, and what came from it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen, steps, text
from mreg.cli.command import Call, Command

if TYPE_CHECKING:
    from mreg.registry.chains.graph import Lineage
    from mreg.registry.digests import Digest


@click.command(
    cls=Command,
    short_help="Show what a version came from, and what came from it.",
    example="mreg lineage prod\nmreg lineage prod --up\nmreg lineage v1 --down --format dot | dot -Tsvg > lineage.svg\n"
    "mreg lineage --of-data rows",
)
@click.argument("rev", required=False, help="The version.")
@click.option("--of-data", metavar="NAME", help="Instead: every version that a dataset went into, and what came of it.")
@click.option("--up", "direction", flag_value="up", help="Only what it came from.")
@click.option("--down", "direction", flag_value="down", help="Only what came from it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "dot", "mermaid", "json"]),
    default="tree",
    show_default=True,
    help="How to print it.",
)
@click.pass_obj
def lineage(call: Call, rev: str | None, of_data: str | None, direction: str | None, form: str) -> None:
    """Show a version's ancestors and descendants as a tree, the oldest first.

    A version with several parents stands under the first and is mentioned under the others.
    """
    if (rev is None) == (of_data is None):
        raise click.UsageError("name either a version or a dataset with --of-data")
    if of_data is not None:
        _impact(call, of_data, form)
        return
    assert rev is not None
    with call.open() as registry:
        graph, nodes = registry.family(rev, up=direction != "down", down=direction != "up")
    rows = {row["digest"]: row for row in nodes}
    if call.json or form == "json":
        screen.emit(_document(graph, rows))
    elif form == "dot":
        screen.lines(_dot(graph, rows))
    elif form == "mermaid":
        screen.lines(_mermaid(graph, rows))
    else:
        screen.lines(_tree(graph, rows, upwards=direction == "up"))


def _impact(call: Call, dataset: str, form: str) -> None:
    from mreg.cli import impact

    if form not in ("tree", "json"):
        raise click.UsageError(f"--of-data gives a table or json, not {form}")
    with call.open() as registry:
        known, found = registry.trained_on(dataset)
    if call.json or form == "json":
        screen.emit(impact.document(known, found))
    else:
        impact.tell(known, found)


def _tree(graph: Lineage, rows: dict[Digest, Any], *, upwards: bool) -> Iterable[str]:
    from mreg.cli.drawing import tree

    roles: dict[tuple[Digest, Digest], list[str]] = {}
    for edge in graph.edges:
        roles.setdefault((edge.parent, edge.child), []).append(edge.role)

    def label(node: Digest, above: Digest | None, again: bool) -> str:
        row = rows[node]
        name = screen.ink(f"v{row['number']}", "yellow", bold=node == graph.centre) + steps.recalled(row)
        between = [] if above is None else roles.get((node, above) if upwards else (above, node), [])
        played = [role for role in between if role != "source"]
        said = [screen.ink("(above)", dim=True)] if again else [steps.refs(row), steps.summary(row)]
        parts = [name, f"[{', '.join(map(text.clean, dict.fromkeys(played)))}]" if played else "", *said]
        if node == graph.centre:
            parts.append(screen.ink("◀", "yellow", bold=True))
        return " ".join(part for part in parts if part)

    if upwards:
        roots: Sequence[Digest] = [graph.centre]
    else:
        numbers = graph.numbers
        roots = [
            node
            for node in sorted(numbers, key=lambda node: numbers[node])
            if all(numbers[parent] >= numbers[node] for parent in graph.parents(node))
        ]
    return screen.cropped(tree(roots, graph.parents if upwards else graph.children, label))


def _document(graph: Lineage, rows: dict[Digest, Any]) -> dict[str, Any]:
    names = {digest: f"v{number}" for digest, number in graph.numbers.items()}
    return {
        "version": f"v{graph.numbers[graph.centre]}",
        "nodes": [steps.node(row) for row in rows.values()],
        "edges": [steps.edge(edge, names) for edge in graph.edges],
    }


def _dot(graph: Lineage, rows: dict[Digest, Any]) -> Iterator[str]:
    yield "digraph lineage {"
    yield '  node [shape=box, style=rounded, fontname="sans-serif"];'
    for digest, row in rows.items():
        words = "\\n".join(_quoted(part) for part in _label(row))
        bold = ", penwidth=2" if digest == graph.centre else ""
        red = ", color=red" if row["recalled"] else ""
        yield f'  v{row["number"]} [label="{words}"{bold}{red}];'
    for edge in graph.edges:
        role = "" if edge.role == "source" else f' [label="{_quoted(edge.role)}"]'
        yield f"  v{graph.numbers[edge.parent]} -> v{graph.numbers[edge.child]}{role};"
    yield "}"


def _mermaid(graph: Lineage, rows: dict[Digest, Any]) -> Iterator[str]:
    yield "graph TD"
    recalled = [f"v{row['number']}" for row in rows.values() if row["recalled"]]
    for row in rows.values():
        words = "<br/>".join(
            html.escape(text.clean(part)).replace("&", "#").replace("#amp;", "&amp;") for part in _label(row)
        )
        yield f'  v{row["number"]}["{words}"]'
    for edge in graph.edges:
        role = "" if edge.role == "source" else f"|{html.escape(text.clean(edge.role))}|"
        yield f"  v{graph.numbers[edge.parent]} -->{role} v{graph.numbers[edge.child]}"
    if recalled:
        yield "  classDef recalled stroke:#c00,stroke-width:3px"
        yield f"  class {','.join(recalled)} recalled"


def _label(row: Any) -> list[str]:
    return [" ".join([f"v{row['number']}", *row["refs"]]), steps.transform(row), *["recalled"] * bool(row["recalled"])]


def _quoted(words: str) -> str:
    return text.clean(words).replace("\\", "\\\\").replace('"', '\\"')
