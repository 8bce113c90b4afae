// How the mean score over the tasks seen so far went on, one line per run.
function registerComparison(holder, comparison) {
  const strategies = [...new Set(comparison.lines.map((line) => line.strategy))];
  const last = comparison.lines.map((line) => `${line.name} ${shown(line.y[line.y.length - 1])}`);
  holder.setAttribute("aria-label", `Line chart of the mean score over the tasks seen so far. At the end: ${last.join(", ")}.`);
  registerChart(holder, () => {
    const traces = comparison.lines.map((line) => {
      const i = strategies.indexOf(line.strategy);
      const tone = colour(`t${(i % 8) + 1}`);
      return { type: "scatter", mode: line.x.length > 1 ? "lines+markers" : "markers", x: line.x, y: line.y, name: inert(line.name), line: { color: tone, width: 2.2 },
        marker: { symbol: SYMBOLS[i % 8], size: 8, color: tone }, hovertemplate: "%{y:.3f}" };
    });
    const ticks = comparison.tasks.map((_, i) => i + 1);
    const names = comparison.tasks.map((name, i) => inert(`${i + 1} ${name.length > 14 ? `${name.slice(0, 13)}…` : name}`));
    return Plotly.react(holder, traces, layout({
      showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } }, hovermode: "x unified", margin: { l: 56, r: 12, t: 40, b: 44 },
      xaxis: axis({ tickvals: ticks, ticktext: names, title: { text: "after task", standoff: 8 } }),
      yaxis: axis({ range: [-0.02, 1.04], title: { text: "mean score so far" } }),
    }), config());
  });
}
