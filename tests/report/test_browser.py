"""The page in a browser: charts, themes, keyboard, phones, and no request to a network."""

import io
import json
import time

import pytest
from PIL import Image

from edkd.report.page import page
from edkd.results.runs import read_run
from tests.short_forms import slow_but


def wait_for(browser, script, *arguments, seconds=20):
    """Poll until a script returns what is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = browser.execute_script(script, *arguments)
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(script)


def draw_all(browser):
    """Open all details, and bring each chart into view."""
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    count = browser.execute_script("return document.querySelectorAll('figure.chart').length")
    for place in range(count):
        browser.execute_script(
            "document.querySelectorAll('figure.chart')[arguments[0]].scrollIntoView()", place
        )
        wait_for(
            browser,
            "return document.querySelectorAll('figure.chart')[arguments[0]]"
            ".querySelector('.main-svg')",
            place,
        )
    return count


def requests_of(browser):
    """Addresses that were asked for."""
    found = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
    return found


def test_it_loads_without_errors_and_requests(show, page_file):
    browser = show(page_file)
    draw_all(browser)
    addresses = [url for url in requests_of(browser) if not url.startswith(("data:", "blob:"))]
    assert addresses == [page_file.as_uri()]
    assert browser.get_log("browser") == []


def test_every_chart_is_drawn_with_its_traces(show, page_file):
    browser = show(page_file)
    count = draw_all(browser)
    assert count > 12
    charts = browser.execute_script("""
        return [...document.querySelectorAll('figure.chart')].map((figure) => {
            const plot = figure.querySelector('.plot');
            const told = JSON.parse(figure.querySelector('script').textContent);
            return {
                told: told.data.length,
                drawn: plot.data.length,
                shown: plot.calcdata.filter((points) => points[0].trace.visible === true).length,
                marks: plot.querySelectorAll('.trace, .heatmaplayer image, .bars').length,
                width: plot.querySelector('.main-svg').getBoundingClientRect().width,
            };
        });
    """)
    for chart in charts:
        assert chart["told"] == chart["drawn"] == chart["shown"]
        assert chart["marks"] >= 1
        assert chart["width"] > 200


@pytest.mark.slow
def test_check_boxes_hide_rows_in_all_charts(show, page_file):
    browser = show(page_file)
    draw_all(browser)
    script = """
        return [...document.querySelectorAll('figure.chart:not([data-fixed]) .plot')]
            .flatMap((plot) => plot.data)
            .filter((trace) => trace.meta === 0 && trace.visible).length
    """
    assert browser.execute_script(script) > 5
    browser.execute_script("document.querySelector('input[data-row=\"0\"]').click()")
    wait_for(browser, f"return ({script.strip().removeprefix('return ')}) === 0")

    browser.execute_script("document.querySelector('button[data-choose=all]').click()")
    wait_for(browser, f"return ({script.strip().removeprefix('return ')}) > 5")


CONTRASTS = """
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const channels = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (color) => {
        const [r, g, b] = channels(color).map((value) => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const color = getComputedStyle(each).backgroundColor;
            if (channels(color)[3] === 255) return color;
        }
        return getComputedStyle(document.body).backgroundColor;
    };
    const texts = [...document.querySelectorAll('body *')].filter((element) =>
        !element.closest('script, svg, noscript') &&
        [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
    const ticks = [...document.querySelectorAll('.plot .xtick text, .plot .ytick text')];
    const pairs = [
        ...texts.map((e) => [e, getComputedStyle(e).color]),
        ...ticks.map((e) => [e, getComputedStyle(e).fill]),
    ];
    return pairs.map(([element, color]) => {
        const [high, low] = [luminance(color), luminance(behind(element))].sort((a, b) => b - a);
        return [(high + 0.05) / (low + 0.05), element.outerHTML.slice(0, 100)];
    });
"""


@pytest.mark.parametrize("theme", slow_but(["dark"], ["light", "dark"]))
def test_texts_have_contrast_in_both_themes(show, page_file, theme):
    browser = show(page_file, theme=theme)
    draw_all(browser)
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 300
    assert [pair for pair in contrasts if pair[0] < 4.5] == []


@pytest.mark.slow
def test_the_button_changes_the_theme(show, page_file):
    browser = show(page_file)
    wait_for(browser, "return document.querySelector('.plot .main-svg')")
    look = """
        return [
            document.getElementById('theme').getAttribute('aria-pressed'),
            getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.body).color,
            document.querySelector('.plot').layout.font.color,
            document.querySelector('.plot').data[0].marker.color,
        ]
    """
    light = browser.execute_script(look)
    browser.execute_script("document.getElementById('theme').click()")
    dark = browser.execute_script(look)
    assert (light[0], dark[0]) == ("false", "true")
    assert all(before != after for before, after in zip(light, dark, strict=True))
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(look) == light


def test_a_dark_system_starts_dark(show, page_file):
    browser = show(page_file, theme="dark")
    pressed = browser.execute_script(
        "return document.getElementById('theme').getAttribute('aria-pressed')"
    )
    assert pressed == "true"


@pytest.mark.slow
def test_the_keyboard_reaches_everything(show, page_file):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = show(page_file)
    reached = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        script = """
            const element = document.activeElement;
            const style = getComputedStyle(element);
            const kind = element.closest('nav') ? 'nav' : element.id || element.tagName;
            return [kind, element.matches(':focus-visible') && style.outlineStyle !== 'none']
        """
        reached.append(browser.execute_script(script))

    kinds = [kind for kind, _ in reached]
    assert kinds[:3] == ["A", "theme", "nav"]
    assert {"nav", "SUMMARY", "INPUT", "BUTTON"} <= set(kinds)
    assert all(is_visible for _, is_visible in reached)

    # Enter opens details, space presses the button.
    summary = browser.find_element(By.CSS_SELECTOR, "details.more:not([open]) > summary")
    summary.send_keys(Keys.ENTER)
    assert browser.execute_script("return arguments[0].parentElement.open", summary)
    browser.find_element(By.ID, "theme").send_keys(Keys.SPACE)
    assert browser.find_element(By.ID, "theme").get_attribute("aria-pressed") == "true"


@pytest.mark.slow
def test_screen_readers_get_names_and_headings(show, page_file):
    browser = show(page_file)
    draw_all(browser)
    problems = browser.execute_script("""
        const found = [];
        const say = (text, element) => found.push(text + ': ' + element.outerHTML.slice(0, 80));
        for (const plot of document.querySelectorAll('.plot')) {
            const caption = document.getElementById(plot.getAttribute('aria-labelledby'));
            const hasTable = plot.closest('figure').querySelector('details table tbody tr');
            if (plot.getAttribute('role') !== 'img' || !caption.textContent.trim() || !hasTable) {
                say('chart without a text alternative', plot);
            }
        }
        for (const table of document.querySelectorAll('table')) {
            if (!table.caption || !table.caption.textContent.trim()) say('no caption', table);
            for (const head of table.querySelectorAll('th')) {
                if (!['row', 'col'].includes(head.scope)) say('no scope', head);
            }
        }
        for (const image of document.querySelectorAll('img')) {
            if (!image.alt) say('no alt', image);
        }
        let level = 0;
        for (const heading of document.querySelectorAll('h1, h2, h3, h4')) {
            const own = Number(heading.tagName[1]);
            if (own > level + 1) say('level left out', heading);
            level = own;
        }
        for (const link of document.querySelectorAll('nav a, a.skip')) {
            if (!document.querySelector(link.hash)) say('no target', link);
        }
        for (const each of document.querySelectorAll('[id]')) {
            if (document.querySelectorAll('#' + CSS.escape(each.id)).length > 1 &&
                !each.closest('svg')) say('id twice', each);
        }
        return found;
    """)
    assert problems == []


@pytest.mark.parametrize("width", slow_but([360], [360, 1280]))
def test_the_page_has_no_horizontal_scrolling(show, page_file, width):
    browser = show(page_file, width=width, height=740)
    draw_all(browser)
    scroll, client = browser.execute_script(
        "const e = document.scrollingElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert scroll <= client == width


@pytest.mark.slow
def test_fifty_rows_with_long_names_stay_readable(show, tmp_path, write_run):
    """The legend scrolls, charts stay in the page, and every row has its own look."""
    for i in range(50):
        name = f"a_very_long_name_of_a_configuration_without_any_space,SOLVER.LR={i}"
        write_run(tmp_path / name, lr=i, curve=(30.0 + i / 10, 50.0 + i / 10))
    runs = [read_run(folder) for folder in sorted(tmp_path.iterdir())]
    path = tmp_path / "report.html"
    path.write_text(page(runs), encoding="utf-8")

    for width in (360, 1280):
        browser = show(path, width=width)
        browser.execute_script("document.querySelector('figure.chart').scrollIntoView()")
        wait_for(browser, "return document.querySelector('.plot .main-svg')")
        assert browser.execute_script(
            "const e = document.scrollingElement; return e.scrollWidth <= e.clientWidth"
        )
        high = browser.execute_script(
            "return document.querySelector('fieldset.legend').getBoundingClientRect().height"
        )
        assert high < 320

    draw_all(browser)
    looks = browser.execute_script("""
        const plot = [...document.querySelectorAll('.plot')].find((each) => each.data[0].line);
        return plot.data.map((t) => [t.line.color, t.line.dash, t.marker.symbol].join());
    """)
    assert len(set(looks)) == 50


@pytest.mark.slow
def test_scripts_in_names_do_not_run(show, tmp_path, write_run):
    evil = "<img src=x onerror='window.bad=1'><script>window.bad=1</script>"
    folder = write_run(tmp_path / "<b>kd", dataset=evil, settings={evil: evil}, method=evil)
    path = tmp_path / "report.html"
    path.write_text(page([read_run(folder)], [evil]), encoding="utf-8")
    browser = show(path)
    draw_all(browser)
    assert browser.execute_script("return window.bad === undefined")
    assert browser.get_log("browser") == []
    name = browser.execute_script("return document.querySelector('label.entry span').textContent")
    assert name == "<b>kd"


def screenshot(browser):
    return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)])
@pytest.mark.parametrize("theme", slow_but(["light"], ["light", "dark"]))
def test_charts_have_lines_on_the_screen(show, page_file, width, height, theme):
    """A screenshot of the first chart of the curves has the colours of its rows."""
    browser = show(page_file, width, height, theme)
    place = browser.execute_script("""
        const figure = document.querySelector('#data1-curves figure.chart');
        figure.scrollIntoView({behavior: 'instant', block: 'center'});
        const {x, y, width, height} = figure.querySelector('.plot').getBoundingClientRect();
        return [x, y, x + width, y + height].map(Math.round);
    """)
    wait_for(browser, "return document.querySelector('#data1-curves .main-svg')")
    time.sleep(0.3)
    colors = browser.execute_script(
        "return document.querySelector('#data1-curves .plot').data"
        ".filter((trace) => trace.marker).map((trace) => trace.marker.color)"
    )

    picture = screenshot(browser).crop(place)
    counts = {color: count for count, color in picture.getcolors(1 << 20)}
    assert len(counts) > 50
    background = max(counts, key=counts.get)
    assert (sum(background) > 384) == (theme == "light")
    for color in colors:
        channels = tuple(int(part) for part in color[4:-1].split(","))
        near = [
            count
            for shown, count in counts.items()
            if all(abs(a - b) <= 4 for a, b in zip(shown, channels, strict=True))
        ]
        assert sum(near) > 8, color  # of the row with one epoch, a marker alone


@pytest.mark.slow
def test_classes_of_the_same_name_stay_apart(show, findings, runs, tmp_path):
    """ImageNet has two cranes."""
    from edkd.report.predictions import prediction_sections

    named = [found._replace(class_names=["crane"] * 10) for found in findings]
    path = tmp_path / "report.html"
    path.write_text(page(runs, [], lambda subject: prediction_sections(named)), encoding="utf-8")
    browser = show(path)
    browser.execute_script(
        "document.querySelector('#data1-errors details figure.chart').scrollIntoView()"
    )
    wait_for(browser, "return document.querySelector('#data1-errors details .main-svg')")
    cells, ticks = browser.execute_script("""
        const plot = document.querySelector('#data1-errors details .plot');
        const ticks = [...plot.querySelectorAll('.xtick text')].map((each) => each.textContent);
        return [plot.calcdata[0][0].z.map((row) => row.length), ticks];
    """)
    assert cells == [10] * 10
    assert ticks == ["crane"] * 10


def test_printing_is_light_and_without_controls(show, page_file):
    browser = show(page_file, theme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    scheme, controls = browser.execute_script("""
        const shown = (each) => getComputedStyle(each).display !== 'none';
        const controls = document.querySelectorAll('nav, #theme, button[data-choose]');
        return [
            getComputedStyle(document.documentElement).colorScheme,
            [...controls].filter((each) => each.offsetParent && shown(each)).length,
        ];
    """)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (scheme, controls) == ("light", 0)
