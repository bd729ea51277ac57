"""The report of prepare as one HTML file: tables of all counts, plots of the main ones, and no request to anywhere.

5 MB with plotly's script inside; without plotly, which is optional, 30 KB of tables that say the same. The same counts
give the same bytes: no time of day is written. Text of documents is on it only where samples are handed in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape

from tessera.lineage import TableVersion
from tessera.prepare.report import charts, html
from tessera.prepare.report.charts import Chart
from tessera.prepare.report.counts import Counts
from tessera.prepare.report.samples import Sample

TITLE = "Tessera: prepared documents"
BAR_PIXELS, AXIS_PIXELS, STANDING_PIXELS = 26, 90, 340
"""Height of a lying bar, of what else a plot of them needs, and of a plot of standing bars."""
GLOSSARY = (
    ("Row", "a row of a source at its pinned version that its filter lets pass."),
    ("Document", "a row that is fit and allowed to train on, as it is after masking."),
    ("Dropped", "each row for one reason, the first that holds; none is dropped without one."),
    ("Cluster", "rows of equal contents (exact), or contents that are nearly equal (near); one of them stays."),
    ("Private values", "what was found, whatever was then done with it, in rows that were dropped too."),
    ("Tokens", "bytes of the documents over the bytes that a token stands for: an estimate."),
)  # fmt: skip


def render(counts: Counts, *, inputs: Sequence[TableVersion] = (), samples: Sequence[Sample] = ()) -> str:
    """The whole page.

    Args:
        inputs: the sources at the versions that were read.
        samples: shown as they are; leave them out of what leaves the home.
    """
    plotly = html.plotly()
    drawn = _charts(counts) if plotly else {}
    body = [
        f"<header><h1>{TITLE}</h1>{html.paragraph(_versions(counts), css='versions')}",
        f"{html.paragraph(sentence(counts))}</header><main>",
        _figures(counts),
        *([] if plotly else [html.paragraph("The plots need plotly: pip install 'tessera[explore]'", css="hint")]),
        *html.section("Sources", _sources(counts, inputs=inputs, drawn=drawn)),
        *html.section("Dropped rows", _dropped(counts)),
        *html.section("Lengths", _lengths(counts, drawn=drawn)),
        *html.section("Duplicates", _duplicates(counts, drawn=drawn)),
        *html.section("Private data", _private(counts, drawn=drawn)),
        *html.section("Evaluation text", _contaminated(counts)),
        *(html.section("Samples", _samples(samples)) if samples else ()),
        f"</main><footer><h2>How to read it</h2>{html.definitions(GLOSSARY, css='glossary')}</footer>",
        *(_scripts(drawn, plotly=plotly) if plotly else ()),
    ]
    return html.page(TITLE, style=html.file("page.css"), body=body)


def sentence(counts: Counts) -> str:
    """What the page says, in one line."""
    rows, documents = counts.total("rows"), counts.total("documents")
    dropped = sorted(counts.by_name("dropped").items(), key=lambda one: (-one[1], one[0]))
    most = f"; the most common reason against a row was {dropped[0][0]} ({dropped[0][1]:,.0f})" if dropped else ""
    return f"{documents:,.0f} of {rows:,.0f} rows became documents ({_share(documents, rows)}){most}. {tokens(counts)}."


def tokens(counts: Counts) -> str:
    """The estimate of tokens, and what it stands on."""
    ((how, ratio),) = counts.by_name("bytes_per_token").items()
    basis = "as the newest shard set has" if how == "measured" else "which is assumed"
    return f"About {counts.total('tokens'):,.0f} tokens, at {ratio:.2f} bytes a token, {basis}"


def _versions(counts: Counts) -> str:
    tables = (counts.documents, counts.decisions)
    return ", ".join(f"{table.path}@{table.version}" for table in tables)


def _figures(counts: Counts) -> str:
    pairs = {
        "rows": counts.total("rows"),
        "documents": counts.total("documents"),
        "tokens, about": counts.total("tokens"),
        "rows dropped": counts.total("dropped"),
        "held out": counts.total("documents", name="heldout"),
        "private values": counts.total("private_values"),
    }
    return html.definitions(pairs.items(), css="figures")


def _sources(counts: Counts, *, inputs: Sequence[TableVersion], drawn: dict[str, Chart]) -> Iterator[str]:
    yield from _drawn(drawn, "by-source")
    versions = {table.name: str(table.version) for table in inputs}
    rows, documents, dropped, bytes_, tokens_ = (
        counts.by_source(what) for what in ("rows", "documents", "dropped", "bytes", "tokens")
    )
    head = ("source", "version", "kind", "rows", "documents", "kept", "dropped", "train", "held out", "bytes", "tokens")
    yield html.table(
        "Sources, the one with most rows first",
        head=head,
        rows=[
            (
                source, versions.get(source, ""), kind, _sum(rows[source]), _sum(documents[source]),
                _share(_sum(documents[source]), _sum(rows[source])), _sum(dropped[source]),
                documents[source].get("train", 0), documents[source].get("heldout", 0), _sum(bytes_[source]),
                _sum(tokens_[source]),
            )
            for source, kind in counts.sources.items()
        ],
    )  # fmt: skip
    moved = counts.by_name("moved")
    if moved:
        yield html.paragraph(
            f"{moved['documents']:,.0f} documents changed their split against the version before, since clusters of "
            "near-duplicates merged."
        )


def _dropped(counts: Counts) -> Iterator[str]:
    reasons = sorted(counts.by_name("dropped").items(), key=lambda one: (-one[1], one[0]))
    if not reasons:
        yield html.paragraph("No row was dropped.")
        return
    total = counts.total("rows")
    yield html.table(
        "Rows dropped, by reason",
        head=("reason", "rows", "of all rows"),
        rows=[(reason, number, _share(number, total)) for reason, number in reasons],
    )
    yield from _matrix("dropped", counts=counts, names=[reason for reason, _ in reasons], title="Rows dropped")


def _lengths(counts: Counts, *, drawn: dict[str, Chart]) -> Iterator[str]:
    yield from _drawn(drawn, "lengths")
    found = counts.by_name("length")
    rows = [
        (charts.num_bytes(int(name)), charts.num_bytes(max(1, 2 * int(name))), number) for name, number in found.items()
    ]
    shown = html.table("Documents by length", head=("from", "to below", "documents"), rows=rows)
    yield html.folded("The same as a table", shown) if drawn else shown


def _duplicates(counts: Counts, *, drawn: dict[str, Chart]) -> Iterator[str]:
    if not counts.total("exact_clusters") + counts.total("near_clusters"):
        yield html.paragraph("No row was displaced by a duplicate.")
        return
    yield from _drawn(drawn, "duplicates")
    what = [f"{sort}_{measure}" for sort in ("exact", "near") for measure in ("clusters", "displaced")]
    sizes = sorted({int(size) for name in what for size in counts.by_name(name)})
    rows: list[tuple[html.Cell, ...]] = [
        (charts.span(size), *(counts.total(name, name=str(size)) for name in what)) for size in sizes
    ]
    head = ("size of the cluster", "exact clusters", "rows displaced", "near clusters", "rows displaced")
    yield html.table("Clusters of duplicates, by size", head=head, rows=rows)


def _private(counts: Counts, *, drawn: dict[str, Chart]) -> Iterator[str]:
    looked_at, rows = counts.total("private_looked_at"), counts.total("rows")
    values, holding = counts.by_name("private_values"), counts.by_name("private_rows")
    yield html.paragraph(
        f"It was looked for in {looked_at:,.0f} of {rows:,.0f} rows{'' if values else ': none found'}."
    )
    if not values:
        return
    yield from _drawn(drawn, "private")
    yield html.table(
        "Private data found, by type",
        head=("type", "values found", "rows that hold it", "of those looked at"),
        rows=[(name, number, holding[name], _share(holding[name], looked_at)) for name, number in values.items()],
    )
    yield from _matrix("private_values", counts=counts, names=list(values), title="Private values found")


def _contaminated(counts: Counts) -> Iterator[str]:
    sets = counts.by_name("contaminated")
    if not sets:
        yield html.paragraph("No row shares text with an evaluation set, or none was named.")
        return
    caption = "Rows that share text with an evaluation set, dropped or only flagged"
    yield html.table(caption, head=("evaluation set", "rows"), rows=list(sets.items()))
    yield from _matrix("contaminated", counts=counts, names=list(sets), title="Rows that share text")


def _matrix(what: str, *, counts: Counts, names: Sequence[str], title: str) -> Iterator[str]:
    """A count by source and name, folded away; nothing where there is one source."""
    if len(counts.sources) > 1:
        found = counts.by_source(what).items()
        rows: list[tuple[html.Cell, ...]] = [
            (source, *(values.get(name, 0) for name in names)) for source, values in found if values
        ]
        yield html.folded(f"{title}, by source", html.table(f"{title}, by source", head=("source", *names), rows=rows))


def _samples(samples: Sequence[Sample]) -> Iterator[str]:
    yield html.paragraph("The beginnings of documents, after masking. They are on this page alone, not in MLflow.")
    for one in samples:
        about = f"{one.source}, {one.kind}, {one.split}, {one.num_bytes:,} bytes, document {one.doc_id[:12]}"
        yield f'<figure><figcaption>{escape(about)}</figcaption><pre dir="auto">{escape(one.text)}</pre></figure>'


def _charts(counts: Counts) -> dict[str, Chart]:
    made = (charts.by_source(counts), charts.lengths(counts), charts.duplicates(counts), charts.private(counts))
    return {chart.name: chart for chart in made if chart.categories}


def _drawn(drawn: dict[str, Chart], name: str) -> Iterator[str]:
    """The place of a plot with its legend; the table beside it says the same to who cannot see it."""
    chart = drawn.get(name)
    if chart is None:
        return
    yield f"<h3>{escape(chart.title)}</h3>"
    if len(chart.series) > 1:
        keys = (f'<li><i style="background: var(--c{place})"></i>{escape(one.name)}</li>'
                for place, one in enumerate(chart.series))  # fmt: skip
        yield f'<ul class="legend">{"".join(keys)}</ul>'
    height = AXIS_PIXELS + BAR_PIXELS * len(chart.categories) if chart.lying else STANDING_PIXELS
    label = escape(f"{chart.title}; the figures are in the table below")
    yield f'<div id="{name}" class="plot" style="height: {height}px" role="img" aria-label="{label}"></div>'


def _scripts(drawn: dict[str, Chart], *, plotly: str) -> Iterator[str]:
    yield html.script_data([{**asdict(chart), "log": chart.log} for chart in drawn.values()], name="charts")
    yield f"<script>{plotly}</script>"
    yield f"<script>{html.file('page.js')}</script>"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _sum(found: dict[str, float]) -> float:
    return sum(found.values())
