// Tables that sort by a click on a heading, and the filters of the barriers.
function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number.parseFloat(text.replace("−", "-"));
  if (text === "" || text === "–") return { missing: true };
  return { missing: false, number: Number.isNaN(number) ? null : number, text };
}

function compare(a, b) {
  if (a.number !== null && b.number !== null) return a.number - b.number;
  return a.text.localeCompare(b.text, undefined, { numeric: true });
}

function sortBy(table, column, ascending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, i) => ({ row, i, key: sortKey(row, column) }));
  rows.sort((a, b) => {
    if (a.key.missing || b.key.missing) return a.key.missing - b.key.missing || a.i - b.i; // always last
    return (ascending ? 1 : -1) * compare(a.key, b.key) || a.i - b.i;
  });
  body.append(...rows.map((entry) => entry.row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending);
    });
  });
}

function makeFilters(root) {
  const controls = root.querySelector(".controls");
  const rows = [...root.querySelector("tbody").rows];
  const [quantity, role, path] = ["quantity", "role", "path"].map((name) => control(root, name));
  const paths = [...new Set(rows.map((row) => row.dataset.path))];
  path.append(...paths.map((name) => element("option", name, { value: name })));
  function apply() {
    let count = 0;
    for (const row of rows) {
      const chosen = (!quantity.value || row.dataset.quantity === quantity.value)
        && (!role.value || row.dataset.role !== "task")
        && (!path.value || row.dataset.path === path.value);
      row.hidden = !chosen;
      count += chosen;
    }
    part(root, "count").textContent = `${count} of ${rows.length} rows`;
  }
  for (const select of [quantity, role, path]) select.addEventListener("change", apply);
  controls.hidden = false;
  apply();
}
