// Loss or score on the plane through three minima: a surface one can turn, or a map.
const LOG_FROM = 30; // highest over lowest loss from where heights are logarithms
const MOST_SURFACES = 6; // browsers keep few 3-D pictures alive
const SURFACES = [];

function webgl() {
  try { return document.createElement("canvas").getContext("webgl") !== null; } catch { return false; }
}

// Between the four nodes around (x, y), for drawing a trajectory on the surface.
function onGrid(plane, grid, x, y) {
  const cell = (ticks, at) => Math.max(0, Math.min(ticks.length - 2, ticks.findLastIndex((tick) => tick <= at)));
  const [i, j] = [cell(plane.x, x), cell(plane.y, y)];
  const u = (x - plane.x[i]) / (plane.x[i + 1] - plane.x[i]);
  const v = (y - plane.y[j]) / (plane.y[j + 1] - plane.y[j]);
  const corners = [grid[j][i], grid[j][i + 1], grid[j + 1][i], grid[j + 1][i + 1]];
  if (corners.includes(null)) return null;
  return (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * ((1 - u) * corners[2] + u * corners[3]);
}

// A little above the surface, which would hide half of a marker.
function lifted(height, scale) {
  return height === null ? null : height + 0.035 * (scale.height(scale.high) - scale.height(scale.low));
}

class SurfacePanel {
  constructor(root, planes) {
    this.root = root;
    this.planes = planes;
    this.chart = part(root, "chart");
    const choice = control(root, "plane");
    if (choice) {
      fillSelect(choice, planes.map((plane) => plane.title));
      choice.addEventListener("change", () => this.choosePlane());
    }
    for (const name of ["quantity", "task", "view"]) control(root, name).addEventListener("change", () => this.show());
    part(root, "values").addEventListener("toggle", () => this.fillAll());
    if (!webgl()) {
      control(root, "view").value = "contour";
      control(root, "view").options[0].disabled = true;
    }
    this.choosePlane();
    registerChart(this.chart, () => this.draw());
  }

  get plane() { return this.planes[control(this.root, "plane")?.value ?? 0]; }
  get task() { return this.names[control(this.root, "task").value]; }
  get quantity() { return control(this.root, "quantity").value; }
  get flat() { return control(this.root, "view").value === "contour"; }
  get values() { return this.plane.tasks[this.task][this.quantity]; }

  choosePlane() {
    const order = { mean: 0, mean_old: 1 };
    this.names = Object.keys(this.plane.tasks).sort((a, b) => (order[a] ?? 2) - (order[b] ?? 2));
    fillSelect(control(this.root, "task"), this.names.map((name) => this.plane.words[name]));
    this.show();
  }

  show() {
    this.describe();
    this.fillAll();
    if (CHARTS.has(this.chart)) refresh(this.chart);
  }

  // Heights as they are drawn: logarithms where the loss spans orders of magnitude.
  scale() {
    const all = this.values.flat().filter((value) => value !== null);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const log = this.quantity === "loss" && low > 0 && high / low > LOG_FROM;
    return { low, high, log, height: (value) => (value === null ? null : log ? Math.log10(value) : value) };
  }

  anchors(height) {
    return this.plane.anchors.map((anchor) => {
      const pair = anchor.values[this.task];
      const value = pair ? pair[this.quantity === "loss" ? 0 : 1] : null;
      return { ...anchor, value, height: height(value) };
    });
  }

  draw() {
    const scale = this.scale();
    const narrow = this.chart.clientWidth < 560;
    const away = narrow ? 1.5 : 1; // a narrow view is farther from the surface, to see it whole
    const heights = this.values.map((row) => row.map(scale.height));
    const name = this.quantity === "loss" ? "loss (nats/token)" : "score";
    const ticks = scale.log ? this.logTicks(scale) : {};
    const colours = { colorscale: "Viridis", reversescale: false,
      colorbar: { title: { text: name, side: narrow ? "top" : "right" }, thickness: 12, outlinewidth: 0, tickfont: { size: 11 }, ...ticks,
        ...(narrow ? { orientation: "h", y: this.flat ? -0.22 : -0.02, yanchor: "top", len: 0.9 } : { len: 0.75 }) } };
    const hover = `x %{x:.3~g}, y %{y:.3~g}<br>${name} %{text}<extra></extra>`;
    const text = this.values.map((row) => row.map((value) => shown(value, 3)));
    const traces = this.flat
      ? [{ type: "contour", x: this.plane.x, y: this.plane.y, z: heights, text, hovertemplate: hover, ncontours: 18, line: { width: 0.6, color: "rgba(255,255,255,.55)" }, ...colours }]
      : [{ type: "surface", x: this.plane.x, y: this.plane.y, z: heights, text, hovertemplate: hover,
          lighting: { ambient: 0.75, diffuse: 0.5, specular: 0.08, roughness: 0.9 },
          contours: { z: { show: true, usecolormap: false, color: "rgba(255,255,255,.55)", width: 1 } }, ...colours }];
    traces.push(...this.walks(scale), this.minima(scale));
    const scene = { annotations: this.labels(scale), xaxis: this.sceneAxis("x"), yaxis: this.sceneAxis("y"), zaxis: this.sceneAxis(name, ticks),
      aspectmode: "manual", aspectratio: { x: 1.25, y: 1.25 * this.proportion(), z: 0.65 }, camera: { eye: { x: 0.85 * away, y: -1.25 * away, z: 0.95 * away }, center: { x: 0, y: 0, z: -0.17 } }, dragmode: "turntable", bgcolor: "rgba(0,0,0,0)" };
    const figure = this.flat
      ? layout({ xaxis: axis({ title: { text: "x (distance)" }, showgrid: false, constrain: "domain" }), yaxis: axis({ title: { text: "y" }, scaleanchor: "x", showgrid: false, constrain: "domain" }), hovermode: "closest", margin: { l: 56, r: 12, t: 12, b: narrow ? 110 : 44 } })
      : layout({ scene, margin: { l: 0, r: 0, t: 0, b: narrow ? 60 : 0 } });
    if (!this.flat) this.keepFew();
    return Plotly.react(this.chart, traces, figure, config(this.flat ? "flat" : "solid"));
  }

  // y against x as they are, unless the plane is too narrow to see.
  proportion() {
    const length = (ticks) => ticks[ticks.length - 1] - ticks[0];
    return Math.max(0.55, Math.min(1.4, length(this.plane.y) / length(this.plane.x)));
  }

  sceneAxis(title, extra = {}) {
    return { title: { text: title }, gridcolor: colour("line"), color: colour("soft"), backgroundcolor: "rgba(0,0,0,0)", showspikes: false, tickfont: { size: 11 }, ...extra };
  }

  logTicks(scale) {
    const wanted = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100];
    const inside = wanted.filter((value) => value >= scale.low * 0.99 && value <= scale.high * 1.01);
    return { tickvals: inside.map(Math.log10), ticktext: inside.map(String) };
  }

  minima(scale) {
    const found = this.anchors(scale.height);
    const points = { x: found.map((a) => a.x), y: found.map((a) => a.y), text: found.map((a) => inert(a.name)),
      customdata: found.map((a) => shown(a.value, 3)), hovertemplate: "%{text}: %{customdata}<extra></extra>" };
    if (this.flat) {
      return { ...points, mode: "markers+text", type: "scatter", textposition: "top center", textfont: { color: "#fff", size: 12, shadow: "0 0 3px #000, 0 0 3px #000" },
        marker: { symbol: "diamond", size: 11, color: "#fff", line: { color: "#000", width: 1.5 } }, cliponaxis: false };
    }
    return { ...points, mode: "markers", type: "scatter3d", z: found.map((a) => lifted(a.height, scale)),
      marker: { symbol: "circle", size: 6, color: "#ffffff", line: { color: "#000000", width: 2 } } };
  }

  // Names of the minima in 3-D, on a ground of their own so that the surface does not swallow them.
  labels(scale) {
    return this.anchors(scale.height).filter((a) => a.height !== null).map((a, i) => ({
      x: a.x, y: a.y, z: lifted(a.height, scale), text: inert(a.name), ax: 0, ay: -38 - 26 * (i % 2), arrowhead: 0, arrowwidth: 1.2, arrowcolor: colour("ink"),
      font: { size: 12, color: colour("ink") }, bgcolor: faded(colour("paper"), 0.85), borderpad: 3 }));
  }

  walks(scale) {
    return this.plane.walks.map((walk, i) => {
      const tone = i === 0 ? "#ff5c8a" : "#ffffff";
      const shared = { x: walk.x, y: walk.y, mode: "lines", text: walk.step.map((step) => inert(`${walk.learner}, step ${step}`)), hovertemplate: "%{text}<extra></extra>", line: { color: tone, width: this.flat ? 2 : 5 } };
      if (this.flat) return { ...shared, type: "scatter" };
      const heights = walk.x.map((x, k) => onGrid(this.plane, this.values, x, walk.y[k]));
      return { ...shared, type: "scatter3d", z: heights.map(scale.height) };
    });
  }

  // Of many pictures in 3-D the oldest turns into a map.
  keepFew() {
    if (SURFACES.includes(this)) return;
    SURFACES.push(this);
    if (SURFACES.length <= MOST_SURFACES) return;
    const oldest = SURFACES.shift();
    Plotly.purge(oldest.chart);
    control(oldest.root, "view").value = "contour";
    oldest.show();
  }

  describe() {
    const scale = this.scale();
    const found = this.anchors(scale.height).map((a) => `${a.name} ${shown(a.value, 3)}`).join(", ");
    const what = `${this.quantity === "loss" ? "Loss (nats per target token)" : "Score (0 to 1)"} of ${this.plane.words[this.task]}`;
    const drawn = this.plane.walks.length ? ` Lines: trajectories of ${this.plane.walks.map((walk) => walk.learner).join(" and ")} during training, projected onto the plane.` : "";
    part(this.root, "caption").textContent = `${what} on the plane through three minima (marked), ${this.plane.title}; x and y are distances in that space.${scale.log ? " Heights and colours are logarithmic." : ""}${drawn}${this.flat ? "" : " Drag to turn."}`;
    this.chart.setAttribute("aria-label", `${what} on a plane, ${this.plane.title}: from ${shown(scale.low, 3)} to ${shown(scale.high, 3)}. At the minima: ${found}. The values are in the table below.`);
  }

  fillAll() {
    if (!part(this.root, "values").open) return;
    const head = element("thead");
    head.append(element("tr"));
    head.rows[0].append(element("th", "y \\ x", { scope: "col" }), ...this.plane.x.map((x) => element("th", shown(x), { scope: "col" })));
    const body = element("tbody");
    this.plane.y.forEach((y, j) => {
      const row = element("tr");
      row.append(element("th", shown(y), { scope: "row" }), ...this.values[j].map((value) => element("td", shown(value, 3), { class: "number" })));
      body.append(row);
    });
    part(this.root, "all").replaceChildren(element("caption", part(this.root, "caption").textContent), head, body);
  }
}
