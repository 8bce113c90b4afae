// Everything is put in its place; what is in view is drawn first.
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
for (const root of document.querySelectorAll("[data-barriers]")) makeFilters(root);
const BY_ID = Object.fromEntries(DATA.runs.map((run) => [run.id, run]));
for (const root of document.querySelectorAll("[data-paths]")) new PathPanel(root, BY_ID[root.dataset.paths].paths);
for (const root of document.querySelectorAll("[data-surface]")) new SurfacePanel(root, BY_ID[root.dataset.surface].planes);
for (const holder of document.querySelectorAll('[data-chart="comparison"]')) registerComparison(holder, DATA.comparison);

// A link to a run opens it.
function openTarget() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const run = target && target.closest("details.run");
  if (run && !run.open) {
    run.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  refreshAll();
  for (const root of document.querySelectorAll("[data-paths]")) control(root, "lines").dispatchEvent(new Event("change"));
});
function setPaper(paper) {
  document.documentElement.classList.toggle("paper", paper);
  for (const [holder, chart] of CHARTS) {
    if (!chart.drawn && !(paper && holder.checkVisibility())) continue;
    drawChart(holder);
    Plotly.Plots.resize(holder);
  }
}
addEventListener("beforeprint", () => setPaper(true));
addEventListener("afterprint", () => setPaper(false));

performance.mark("report-ready");
document.documentElement.dataset.ready = "yes";
