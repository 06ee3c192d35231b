"""Pages for people, and the drawing of a chain in them."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest
from mreg.cli.chain_drawing import HEIGHT, WIDTH, Arrow, Box, lay_out, mermaid, svg
from mreg.cli.page import Cell, Code, Drawing, Heading, Paragraph, Table, as_html, as_markdown

BLOCKS = [
    Paragraph("fine", "good"),
    Heading("What"),
    Paragraph("plain <b>words</b> & more"),
    Table(("name", "count"), [["a|b", Cell("1,024", right=True)], [Cell("close", "fair"), Cell("", right=True)]]),
    Table((), [["key", "value"]]),
    Code(["mreg replay v1", "echo ```"]),
    Drawing("<svg></svg>", "graph TD"),
]


def test_a_page_in_markdown():
    assert """# A \\*title\\*

**fine**

## What

plain &lt;b&gt;words&lt;/b&gt; &amp; more

| name | count |
| --- | ---: |
| a\\|b | 1,024 |
| **close** |  |

|  |  |
| --- | --- |
| key | value |

````sh
mreg replay v1
echo ```
````

```mermaid
graph TD
```

---

the end
""" == as_markdown("A *title*", BLOCKS, footer="the end")


def test_a_page_in_html_escapes_what_it_is_given():
    page = as_html("A <title>", BLOCKS, footer="the end")

    assert "<title>A &lt;title&gt;</title>" in page
    assert '<p class="good">fine</p>' in page
    assert "<p>plain &lt;b&gt;words&lt;/b&gt; &amp; more</p>" in page
    assert '<td class="right">1,024</td>' in page
    assert '<td><span class="fair">close</span></td>' in page
    assert '<tr><th scope="row">key</th><td>value</td></tr>' in page
    assert "<svg></svg>" in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_control_and_direction_characters_are_spelled_out_in_both():
    words = [Paragraph("a\u202eb\x1b[0m"), Code(["c\x07d"])]

    for page in (as_html("t", words, footer=""), as_markdown("t", words, footer="")):
        assert not {"\u202e", "\x1b", "\x07"} & {*page}
        assert "\\x07" in page


CHAINS = {
    "line": ["ab", "bc", "cd"],
    "merge": ["ab", "ac", "bd", "cd"],
    "shortcut": ["ab", "bc", "cd", "ad", "ac"],
    "late base": ["ab", "bc", "xd", "cd", "de"],
    "fan": ["ab", "ac", "ad", "ae", "bf", "cf", "df", "ef"],
    "two ends of one": ["ab", "ab"],
}


@pytest.mark.parametrize("name", CHAINS)
def test_no_box_lies_on_another_and_all_arrows_go_down(name: str):
    arrows = [(one[0], one[1]) for one in CHAINS[name]]
    keys = [*dict.fromkeys(key for arrow in arrows for key in arrow)]
    keys.sort(key=lambda key: (key != "x", key))

    places, wide, high = lay_out(keys, arrows)

    for (x, y), (p, q) in itertools.combinations([places[key] for key in keys], 2):
        assert abs(x - p) >= WIDTH or abs(y - q) >= HEIGHT
    assert all(places[start][1] + HEIGHT < places[end][1] for start, end in arrows)
    assert all(WIDTH / 2 <= places[key][0] <= wide - WIDTH / 2 and places[key][1] + HEIGHT <= high for key in keys)


def test_an_arrow_past_other_boxes_goes_around_them():
    places, _, _ = lay_out(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")])

    x, y = places["a", "c", 1]
    assert abs(x - places["b"][0]) > WIDTH / 2
    assert places["b"][1] == y


def test_a_base_that_only_comes_in_late_is_drawn_there():
    places, _, _ = lay_out(["a", "x", "b", "c", "d"], [("a", "b"), ("b", "c"), ("c", "d"), ("x", "d")])

    assert places["c"][1] == places["x"][1]


BOXES = [Box("v1", "v1 <import>", "taken as it is"), Box("v2", "v2 " + "x" * 99, "close", "fair")]
ARROWS = [Arrow("v1", "v2", "base"), Arrow("v1", "v2", "rows & more", data=True)]


def test_a_drawing_is_well_formed_and_clips_long_names():
    drawn = ElementTree.fromstring(svg(BOXES, ARROWS, title="a & b"))  # noqa: S314  it is our own

    words = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert ["base", "rows & more", "v1 <import>", "taken as it is", "close"] == [w for w in words if "x" not in str(w)]
    assert any(str(word).endswith("…") for word in words)


def test_the_same_in_mermaid():
    assert """graph TD
  v1["v1 #lt;import#gt;<br/>taken as it is"]
  v2["v2 xx<br/>close"]:::fair
  v1 -->|base| v2
  v1 -.->|rows &amp; more| v2
  classDef good stroke:#12703a,stroke-width:2px
  classDef fair stroke:#8a5a00,stroke-width:2px
  classDef bad stroke:#ad1f2d,stroke-width:2px""" == mermaid([BOXES[0], Box("v2", "v2 xx", "close", "fair")], ARROWS)
