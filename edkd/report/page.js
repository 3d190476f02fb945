/* Draws the charts when they come into view, in the colours of the theme; hides rows; the theme. */

(() => {
  "use strict";

  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const drawn = new Set();
  let isDark = prefersDark.matches;

  // Colours: charts name custom properties of the style sheet, such as "var(--series-1)".

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  function color(name) {
    probe.style.color = name;
    return getComputedStyle(probe).color;
  }

  function resolved(value) {
    if (typeof value === "string") {
      return /^var\(--[a-z0-9-]+\)$/.test(value) ? color(value) : value;
    }
    if (Array.isArray(value)) {
      return value.map(resolved);
    }
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, resolved(part)]));
    }
    return value;
  }

  // Layout.

  const axis = {
    automargin: true,
    title: { font: { size: 12, color: "var(--muted)" }, standoff: 8 },
    gridcolor: "var(--grid)",
    linecolor: "var(--border)",
    tickcolor: "var(--border)",
    zeroline: false,
    fixedrange: isTouch,
  };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: "var(--text)" },
    margin: { l: 52, r: 14, t: 24, b: 44 },
    showlegend: false,
    dragmode: isTouch ? false : "zoom",
    hoverlabel: {
      bgcolor: "var(--raised)",
      bordercolor: "var(--border)",
      font: { color: "var(--text)" },
      namelength: 40,
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--muted)", activecolor: "var(--text)" },
  };
  const config = {
    responsive: true,
    displayModeBar: isTouch ? false : "hover",
    displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { format: "svg" },
  };

  function merged(below, above) {
    const result = { ...below };
    for (const [key, value] of Object.entries(above)) {
      const isPart = value !== null && typeof value === "object" && !Array.isArray(value);
      result[key] = isPart ? merged(below[key] ?? {}, value) : value;
    }
    return result;
  }

  // Charts.

  function hiddenRows(figure) {
    const group = figure.closest("[data-group]");
    const boxes = group ? group.querySelectorAll("input[data-row]:not(:checked)") : [];
    return new Set([...boxes].map((box) => Number(box.dataset.row)));
  }

  function draw(figure) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const hidden = figure.hasAttribute("data-fixed") ? new Set() : hiddenRows(figure);
    const traces = chart.data.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));

    const layout = merged({ ...base, xaxis: axis, yaxis: axis }, chart.layout);
    const plot = figure.querySelector(".plot");
    drawn.add(figure);
    return Plotly.react(plot, resolved(traces), resolved(layout), config);
  }

  const figures = [...document.querySelectorAll("figure.chart")];
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          watch.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  figures.forEach((figure) => watch.observe(figure));

  addEventListener("beforeprint", () => {
    figures.filter((figure) => !figure.closest("details:not([open])")).forEach(draw);
  });

  // Rows.

  function redraw(group) {
    [...drawn].filter((figure) => group.contains(figure)).forEach(draw);
  }

  for (const legend of document.querySelectorAll("fieldset.legend")) {
    const group = legend.closest("[data-group]");
    legend.addEventListener("change", () => redraw(group));

    for (const button of legend.querySelectorAll("button[data-choose]")) {
      button.addEventListener("click", () => {
        for (const box of legend.querySelectorAll("input[data-row]")) {
          box.checked = button.dataset.choose === "all";
        }
        redraw(group);
      });
    }
  }

  // Theme.

  const button = document.getElementById("theme");

  function setTheme(dark) {
    isDark = dark;
    root.style.colorScheme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    drawn.forEach(draw);
  }

  button.setAttribute("aria-pressed", String(isDark));
  button.addEventListener("click", () => setTheme(!isDark));
  prefersDark.addEventListener("change", (event) => setTheme(event.matches));

  // The place in the contents.

  const links = new Map();
  for (const link of document.querySelectorAll("nav.contents li li a")) {
    links.set(document.querySelector(link.hash), link);
  }
  const reading = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target).setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -75% 0px" },
  );
  links.forEach((_, section) => reading.observe(section));
})();
