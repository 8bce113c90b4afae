"""The page in a browser: it draws, walks, sorts, fits a phone, obeys the keyboard, and asks the network for nothing."""

from itertools import pairwise

import pytest

from mcanalysis.report import write_report
from mcanalysis.runs.run import load_run

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def report(run_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report([load_run(run_folder)], file) < 8_000_000
    return file


@pytest.fixture(scope="module")
def faults():
    """What went wrong in any page since it was last looked at."""
    return []


@pytest.fixture(autouse=True)
def no_faults(faults):
    """After each test: no error in the console, no dialog, no other window, no request that left the machine."""
    faults.clear()
    yield
    assert not faults


@pytest.fixture(scope="module")
def open_page(browser, faults):
    """open_page(file, viewport, **context) -> the page, ready, in a browser without network."""
    contexts = []

    def start(file, viewport=DESKTOP, **settings):
        context = browser.new_context(viewport=viewport, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append("dialog"), dialog.dismiss()))
        page.on("popup", lambda popup: faults.append(f"popup {popup.url}"))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def desktop(open_page, report):
    """One page for all tests that bring it into the state they need."""
    return open_page(report)


def chart(page, panel):
    """The chart of a panel, scrolled into view and drawn."""
    holder = page.locator(f"[data-{panel}] [data-part=chart]")
    holder.scroll_into_view_if_needed()
    page.wait_for_function("holder => holder._fullLayout && holder.data", arg=holder.element_handle())
    return holder


def test_the_slider_moves_the_mark_and_the_values_with_the_keyboard_alone(desktop):
    page = desktop
    holder = chart(page, "paths")
    for name in ("transition", "kind"):
        page.locator(f"[data-control={name}]").select_option(index=0)
    page.locator("[data-control=lines]").select_option("roles")
    slider = page.get_by_label("Walk along the path")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("[data-part=at]").inner_text().startswith("t = 0 (point 1 of 3")
    assert (
        "1.400" in page.locator("[data-part=readout]").inner_text()
    )  # the new task, of four letters, at the first minimum
    page.keyboard.press("ArrowRight")
    assert holder.evaluate("holder => holder.layout.shapes[0].x0") == 0.5
    assert "1.525" in page.locator("[data-part=readout]").inner_text()  # 1.4 + 0.5·¼
    assert slider.get_attribute("aria-valuetext").startswith("t = 0.5. old tasks (mean): score ")
    page.keyboard.press("End")
    assert holder.evaluate("holder => holder.layout.shapes[0].x0") == 1


def test_another_path_draws_another_curve(desktop):
    page = desktop
    holder = chart(page, "paths")

    def middle():
        lines = holder.evaluate("holder => holder.data.filter(d => d.mode === 'lines+markers' && d.yaxis === 'y2')")
        return [line["y"][1] for line in lines]

    for name in ("transition", "kind"):
        page.locator(f"[data-control={name}]").select_option(index=0)
    first = middle()
    page.locator("[data-control=kind]").select_option(label="Bezier, factor space")
    assert middle()[0] == pytest.approx(first[0] - 0.49 * 0.25, abs=1e-3)
    page.locator("[data-control=transition]").select_option(index=1)
    assert middle()[0] == pytest.approx(first[0] + 1 - 0.49 * 0.25, abs=1e-3)
    assert page.locator("[data-control=kind]").evaluate("s => s.selectedOptions[0].text") == "Bezier, factor space"
    page.locator("[data-control=lines]").select_option("tasks")
    assert len(middle()) == 3
    page.get_by_text("All values of this path as a table").click()
    page.locator("[data-paths] [data-part=all] tbody tr").nth(2).wait_for()  # filled once the table is opened
    assert page.locator("[data-paths] [data-part=all] tbody tr").count() == 3


def test_barriers_sort_by_value_and_filter(desktop):
    page = desktop
    table = page.locator("[data-barriers] table")

    def column(i):
        return table.locator(f"tbody tr:not([hidden]) > :nth-child({i})").all_inner_texts()

    assert len(column(1)) == 12 and page.locator("[data-part=count]").inner_text() == "12 of 36 rows"
    table.get_by_role("button", name="chord barrier").focus()
    page.keyboard.press("Enter")
    values = [float(text.split()[0]) for text in column(5)]
    assert values == sorted(values) and len(set(values)) > 3
    assert table.locator("th[aria-sort=ascending]").inner_text().strip().startswith("chord")
    page.keyboard.press("Enter")
    values = [float(text.split()[0]) for text in column(5)]
    assert values == sorted(values, reverse=True)
    page.locator("[data-barriers] [data-control=quantity]").select_option("score")
    table.get_by_role("button", name="gain").click()
    assert [t.split()[0] for t in column(9)][:4] == ["+0.25"] * 4 and set(column(9)[4:]) == {"–"}  # none comes last
    page.locator("[data-barriers] [data-control=path]").select_option("Bezier, factor space")
    assert set(column(2)) == {"Bezier, factor space"}


def test_the_landscape_is_a_surface_or_a_map_and_a_table(desktop):
    page = desktop
    holder = chart(page, "surface")
    view = page.locator("[data-surface] [data-control=view]")
    if view.locator("option[disabled]").count() == 0:  # where the machine can draw in 3-D
        assert holder.evaluate("holder => holder.data[0].type") == "surface"
        assert holder.evaluate("holder => holder.data[0].z[2][3]") == 9
    view.select_option("contour")
    assert holder.evaluate("holder => holder.data.map(d => d.type)") == ["contour", "scatter", "scatter"]
    assert "At the minima: 1-zeta fast 1.000" in holder.get_attribute("aria-label")
    page.get_by_text("The measured values as a table").click()
    assert page.locator("[data-surface] tbody tr").first.inner_text().split() == [
        "−1.00",
        "–",
        "3.000",
        "3.000",
        "5.000",
    ]


def test_nothing_leads_out_of_the_page(desktop):
    page = desktop
    names = set()
    for panel in ("paths", "surface"):
        chart(page, panel).hover()
        names |= set(page.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)"))
    assert names and not [name for name in names if "hare" in name or "loud" in name or "Plotly" in name], names
    links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.href.baseVal ?? a.href)")
    assert all(link == "" or link.startswith(page.url + "#") for link in map(str, links))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(open_page, report, scheme):
    page = open_page(report, PHONE, has_touch=True, is_mobile=True, color_scheme=scheme)
    chart(page, "paths")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    too_wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .chart, .hidden')
        && e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(too_wide) == []
    assert page.evaluate("getComputedStyle(document.body).colorScheme") is not None


def test_every_picture_and_control_has_a_name(desktop):
    page = desktop
    for panel in ("paths", "surface"):
        assert len(chart(page, panel).get_attribute("aria-label")) > 60
    nameless = """[...document.querySelectorAll('select, input, button, table')].filter(e => e.checkVisibility()
        && !(e.labels?.length || e.textContent.trim() || e.caption || e.ariaLabel)).length"""
    assert page.evaluate(nameless) == 0
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_prints(desktop):
    page = desktop
    assert len(page.pdf(format="A4")) > 20_000
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.get_by_label("Walk along the path").is_visible()


def test_hostile_names_do_nothing_and_are_shown_as_they_are(open_page, hostile_folder, tmp_path):
    write_report([load_run(hostile_folder)], tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    first, second = load_run(hostile_folder).task_names[:2]
    for panel in ("paths", "surface"):
        holder = chart(page, panel)
        page.locator(f"[data-{panel}] summary").first.click()
        assert second in holder.get_attribute("aria-label")
    page.locator("[data-control=view]").select_option("contour")
    page.locator("[data-control=lines]").select_option("tasks")
    page.locator("[data-paths] [data-part=chart] .nsewdrag").first.hover()
    page.wait_for_function("document.querySelector('[data-paths] .hoverlayer').textContent.includes('<script>')")
    assert f"{first} fast".replace(first, f"1-{first}") in page.locator("[data-surface] [data-part=chart]").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('main img, main script, main svg a').length") == 0


def test_a_link_opens_the_run_it_names(open_page, make_run, tmp_path):
    folders = [make_run(tmp_path / f"runs/{s}", strategy=s) for s in ("er", "sequential")]
    write_report([load_run(folder) for folder in folders], tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    page.wait_for_function("document.querySelector('[data-chart=comparison]').data?.length === 2")
    assert not page.locator("#run-2-scores").is_visible()
    page.get_by_role("link", name="sequential, seed 0").click()
    page.locator("#run-2-scores").wait_for(state="visible")
    holder = page.locator("#run-2 [data-paths] [data-part=chart]")
    holder.scroll_into_view_if_needed()
    page.wait_for_function("holder => holder.data?.length > 0", arg=holder.element_handle())
