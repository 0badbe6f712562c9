// Draws the charts in the page's colours, sorts and filters tables, switches between light and dark.

const root = document.documentElement;

function config() {
  const style = getComputedStyle(root);
  const [ground, text, quiet, line, accent, heat, second] = [
    "--ground", "--text", "--quiet", "--line", "--accent", "--heat", "--second",
  ].map((name) => style.getPropertyValue(name).trim());
  const labels = { labelColor: quiet, titleColor: quiet, labelFontWeight: "normal", titleFontWeight: "normal" };
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...labels, gridColor: line, domainColor: line, tickColor: line, labelFlush: false, labelSeparation: 8 },
    axisQuantitative: { labelOverlap: "greedy", tickCount: 6 },
    legend: { ...labels, orient: "top" },
    line: { color: accent },
    point: { color: accent },
    rule: { color: accent },
    bar: { color: accent },
    text: { color: text },
    range: {
      category: [accent, second, "#2f9e77", "#a56cc1", "#c9a227"],
      heatmap: [heat, accent],
      ramp: [second, accent],
    },
  };
}

async function draw(figure) {
  const canvas = figure.querySelector(".canvas");
  const specification = JSON.parse(figure.querySelector("script").textContent);
  const renderer = specification.data.values.length > 3000 ? "canvas" : "svg";
  const dark = getComputedStyle(root).colorScheme.includes("dark");
  try {
    // `ast`: Vega interprets expressions, since the page's policy forbids evaluating text as code.
    if (figure.querySelector("[data-log]")?.checked) {
      specification.encoding.y.scale = { type: "log", nice: false };
      specification.transform = [{ filter: "datum.y > 0" }];
    }
    const options = { actions: false, ast: true, renderer, config: config(), tooltip: { theme: dark ? "dark" : "light" } };
    await window.vegaEmbed(canvas, specification, options);
    figure.dataset.drawn = "yes";
  } catch (error) {
    canvas.textContent = `This chart could not be drawn: ${error.message}`;
    figure.dataset.drawn = "no";
  }
}

async function drawAll() {
  if (!window.vegaEmbed) return;
  for (const figure of document.querySelectorAll("figure.drawn")) await draw(figure);
  root.dataset.drawn = "yes";
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim().replace(/^–$/, "");
    return { text, number: text === "" ? NaN : Number(text) };
  };
  const compare = (one, other) => {
    const [a, b] = [!Number.isNaN(one.number), !Number.isNaN(other.number)];
    if (a && b) return one.number - other.number;
    return a === b ? one.text.localeCompare(other.text) : a ? -1 : 1;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => ({ row, key: value(row, column) }));
      // Empty cells stay last in either order.
      const order = (x, y) => (x.key.text === "") - (y.key.text === "") || compare(x.key, y.key) * (ascending ? 1 : -1);
      body.append(...rows.sort(order).map((entry) => entry.row));
    });
  });
}

function makeFilterable(input) {
  const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const count = document.querySelector(`[data-shown=${input.dataset.table}]`);
  input.addEventListener("input", () => {
    const terms = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !terms.every((term) => texts[index].includes(term));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length}`;
  });
}

// Hides the columns that do not fit, those of the highest rank first, and lists all of them to choose from.
function makeChoosable(chooser) {
  const table = document.getElementById(chooser.dataset.columns);
  const heads = [...table.tHead.rows[0].cells];
  const show = (column, on) => [...table.rows].forEach((row) => { row.cells[column].hidden = !on; });
  const columns = heads.map((head, column) => ({ column, rank: Number(head.dataset.rank), width: head.offsetWidth }));
  let free = table.parentElement.clientWidth;
  for (const { column, rank, width } of columns.sort((one, other) => one.rank - other.rank)) {
    if (rank <= 1 || (width && width <= free)) free -= width;
    else show(column, false);
  }
  chooser.firstElementChild.textContent = `Columns: ${heads.filter((head) => !head.hidden).length} of ${heads.length} shown`;
  heads.forEach((head, column) => {
    const [label, box] = [document.createElement("label"), document.createElement("input")];
    [box.type, box.checked, chooser.hidden] = ["checkbox", !head.hidden, false];
    box.addEventListener("change", () => show(column, box.checked));
    label.append(box, ` ${head.textContent}`);
    chooser.append(label);
  });
}

// Shows all that a row has where a run has no page of its own.
function openRun(event) {
  event.preventDefault();
  const [link, dialog] = [event.target, document.getElementById("run")];
  const row = link.closest("tr");
  const heads = row.closest("table").tHead.rows[0].cells;
  const lines = [...row.cells].map((cell, index) => `${heads[index].textContent}  ${cell.textContent}`);
  dialog.querySelector("pre").textContent = lines.join("\n");
  dialog.querySelector("p").hidden = link.getAttribute("href") === "#";  // it has no folder
  dialog.querySelector("p a").href = `${link.pathname}/report.html`;
  dialog.showModal();
  dialog.querySelector("code").textContent = `dltrain report '${decodeURIComponent(link.pathname)}'`;
}

document.querySelectorAll("[data-columns]").forEach(makeChoosable);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("input[data-table]").forEach(makeFilterable);
document.querySelectorAll("[data-run]").forEach((link) => link.addEventListener("click", openRun));
document.querySelectorAll("[data-log]").forEach((box) => box.addEventListener("change", () => draw(box.closest("figure"))));

const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = getComputedStyle(root).colorScheme.includes("dark") ? "light" : "dark";
  drawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
