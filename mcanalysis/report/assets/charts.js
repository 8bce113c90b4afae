// What all charts share: colours of the page's theme, a bare layout, drawing when they come into view.
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

// Plotly reads a little markup, links included, in names; these are texts.
function inert(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// A colour with transparency, from the #rrggbb of the theme.
function faded(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

const COARSE = matchMedia("(pointer: coarse)");
const FAMILY = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", Arial, "' + DATA.font + '", sans-serif';

// Named one by one: by itself the library also offers a button that sends the chart to a server.
const BUTTONS = { flat: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], solid: [["toImage", "tableRotation", "zoom3d", "pan3d", "resetCameraDefault3d"]] };

function config(kind = "flat") {
  return { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true, scrollZoom: false, displayModeBar: COARSE.matches ? false : "hover",
    modeBarButtons: BUTTONS[kind], toImageButtonOptions: { format: "png", scale: 2 } };
}

function axis(extra = {}) {
  return { gridcolor: colour("line"), linecolor: colour("soft"), zeroline: false, ticks: "outside", ticklen: 4,
    tickcolor: colour("soft"), showline: true, automargin: true, ...extra };
}

function layout(extra = {}) {
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: FAMILY, size: 12.5, color: colour("ink") },
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { family: FAMILY, color: colour("ink"), size: 12.5 } },
    dragmode: COARSE.matches ? false : "zoom", margin: { l: 56, r: 12, t: 12, b: 44 }, showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("ink") }, ...extra };
}

// Every chart by its element: drawn when it comes near the view, again when the theme changes, and all before printing.
const CHARTS = new Map();
const NEAR = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    NEAR.unobserve(entry.target);
    drawChart(entry.target);
  }
}, { rootMargin: "300px" });

function drawChart(holder) {
  const chart = CHARTS.get(holder);
  chart.drawn = true;
  return chart.draw().then(() => {
    // The holder's label and the table below say it better than a reading of all ticks.
    for (const picture of holder.querySelectorAll("svg.main-svg, canvas")) picture.setAttribute("aria-hidden", "true");
  });
}

function registerChart(holder, draw) {
  holder.setAttribute("role", "group"); // not "img": there are buttons inside
  holder.setAttribute("aria-roledescription", "chart");
  CHARTS.set(holder, { draw, drawn: false });
  NEAR.observe(holder);
}

// Draw again, if it has been drawn: what is far from the view waits.
function refresh(holder) { if (CHARTS.get(holder).drawn) drawChart(holder); }

function refreshAll() { for (const holder of CHARTS.keys()) refresh(holder); }
