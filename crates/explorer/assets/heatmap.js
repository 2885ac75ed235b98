// A heat map of a matrix with labels. Pointer and arrow keys select a cell to read.

import { h } from "./elements.js";

const FONT = "12px system-ui, sans-serif";
const MAX_CELL = 26; // pixels
const MIN_CELL = 4; // pixels
const MIN_ROW_HEIGHT = 18; // pixels, if the map is not square
const LABEL_SPACING = 13; // pixels
const SLANT = Math.PI / 3;

const rgb = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/** The color at `fraction` (0 to 1) of a gradient with `stops`. */
function interpolate(stops, fraction) {
  const place = Math.min(Math.max(fraction, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const mix = stops[low].map((from, channel) => from + (stops[low + 1][channel] - from) * (place - low));
  return `rgb(${mix.map(Math.round).join(",")})`;
}

/** The colors of the style sheet, for the light or the dark theme. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => rgb(style.getPropertyValue(name).trim());
  const [paper, mid, deep, negative, positive] =
    ["--heat-0", "--heat-1", "--heat-2", "--heat-negative", "--heat-positive"].map(color);
  const ink = style.getPropertyValue("--ink").trim();
  const faint = style.getPropertyValue("--faint").trim();
  return { sequential: [paper, mid, deep], diverging: [negative, paper, positive], ink, faint };
}

/** Sets the size of a canvas in CSS pixels, at the resolution of the screen, and returns its context. */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** The largest absolute value of a matrix. */
const maxAbs = (rows) => rows.reduce((most, row) => row.reduce((m, x) => Math.max(m, Math.abs(x)), most), 0);

/** Position of a value in the gradient. It follows the square root, so that small weights are visible. */
const gradientPosition = (value, most, diverging) => {
  const root = Math.sqrt(Math.abs(value) / (most || 1));
  return diverging ? 0.5 + 0.5 * Math.sign(value) * root : root;
};

/** A small heat map without labels. */
export function thumbnail(rows, side) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const context = sized(canvas, side, side);
  const { sequential } = palette();
  const most = maxAbs(rows);
  const cell = side / rows.length;
  context.fillStyle = interpolate(sequential, 0);
  context.fillRect(0, 0, side, side);
  rows.forEach((row, y) =>
    row.forEach((value, x) => {
      context.fillStyle = interpolate(sequential, gradientPosition(value, most, false));
      context.fillRect(x * cell, y * cell, cell + 0.5, cell + 0.5);
    }));
  return canvas;
}

/** A heat map. `describe(row, column)` returns the text for a cell; `onpick(row, column)` is called for a chosen cell. */
export class HeatMap {
  constructor({ label, describe, onpick = () => {}, diverging = false }) {
    Object.assign(this, { describe, onpick, diverging, rows: [], rowLabels: [], columnLabels: [], cursor: null });
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "img",
      "aria-label": `${label}: use the arrow keys to move between cells, Enter to choose one`,
      onpointermove: (event) => this.point(this.cellAt(event)),
      onpointerleave: () => this.point(null),
      onclick: (event) => this.pick(this.cellAt(event)),
      onkeydown: (event) => this.key(event),
      onfocus: () => this.point(this.cursor ?? this.first()),
      onblur: () => this.point(null),
    });
    this.readout = h("output", { class: "readout", "aria-live": "polite" }, "\u00a0");
    const scale = h("span", { class: diverging ? "scale diverging" : "scale", "aria-hidden": "true" });
    this.low = h("span", { class: "number" });
    this.high = h("span", { class: "number" });
    this.element = h(
      "div",
      { class: "heatmap" },
      h("div", { class: "scroll" }, this.canvas),
      h("div", { class: "under" }, this.readout, h("span", { class: "legend", title: "colors follow the square root" }, this.low, scale, this.high)),
    );
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Sets the matrix. Rows can have different lengths; `marked` is the index of a highlighted row. */
  set({ rows, rowLabels, columnLabels, marked = null }) {
    Object.assign(this, { rows, rowLabels, columnLabels, marked, cursor: null });
    this.most = maxAbs(rows);
    this.low.textContent = this.diverging ? `\u2212${this.most.toFixed(2)}` : "0";
    this.high.textContent = this.most.toFixed(2);
    this.readout.textContent = "\u00a0";
    this.draw();
  }

  first() {
    return this.rows.length > 0 ? { row: this.marked ?? this.rows.length - 1, column: 0 } : null;
  }

  layout() {
    const ruler = this.canvas.getContext("2d");
    ruler.font = FONT;
    const widest = (labels) => Math.max(0, ...labels.map((label) => ruler.measureText(label).width));
    const left = Math.min(widest(this.rowLabels), 110) + 8;
    const top = Math.min(widest(this.columnLabels), 90) * Math.sin(SLANT) + 14;
    const columns = this.columnLabels.length;
    // Slanted labels extend to the right of the last column.
    const lean = Math.min(widest(this.columnLabels), 90) * Math.cos(SLANT);
    const room = this.element.clientWidth - left - lean - 4;
    const cell = Math.max(MIN_CELL, Math.min(MAX_CELL, Math.floor(room / Math.max(columns, 1))));
    const height = this.rows.length === columns ? cell : Math.max(cell, MIN_ROW_HEIGHT);
    return { left, top, cell, height, width: left + columns * cell + lean, tall: top + this.rows.length * height + 2 };
  }

  draw() {
    if (this.rows.length === 0 || this.element.clientWidth === 0) return;
    const { left, top, cell, height, width, tall } = (this.place = this.layout());
    const colors = palette();
    const stops = this.diverging ? colors.diverging : colors.sequential;
    const context = sized(this.canvas, width, tall);
    context.font = FONT;
    context.textBaseline = "middle";
    this.rows.forEach((row, y) =>
      row.forEach((value, x) => {
        context.fillStyle = interpolate(stops, gradientPosition(value, this.most, this.diverging));
        context.fillRect(left + x * cell, top + y * height, cell - (cell > 8 ? 1 : 0), height - (height > 8 ? 1 : 0));
      }));
    const every = (step) => Math.max(1, Math.ceil(LABEL_SPACING / step));
    const bold = (is) => (context.font = is ? `bold ${FONT}` : FONT);
    this.rowLabels.forEach((label, y) => {
      const chosen = y === this.cursor?.row || y === this.marked;
      if (y % every(height) !== 0 && !chosen) return;
      context.fillStyle = chosen ? colors.ink : colors.faint;
      bold(chosen);
      context.textAlign = "right";
      context.fillText(label, left - 6, top + (y + 0.5) * height, left - 8);
    });
    this.columnLabels.forEach((label, x) => {
      const chosen = x === this.cursor?.column;
      if (x % every(cell) !== 0 && !chosen) return;
      context.save();
      context.fillStyle = chosen ? colors.ink : colors.faint;
      bold(chosen);
      context.textAlign = "left";
      context.translate(left + (x + 0.5) * cell, top - 6);
      context.rotate(-SLANT);
      context.fillText(label, 0, 0, 90);
      context.restore();
    });
    context.strokeStyle = colors.ink;
    if (this.marked !== null && this.rows[this.marked]) {
      context.globalAlpha = 0.45;
      context.strokeRect(left - 0.5, top + this.marked * height - 0.5, this.rows[this.marked].length * cell, height);
      context.globalAlpha = 1;
    }
    if (this.cursor) {
      const { row, column } = this.cursor;
      context.lineWidth = 2;
      context.strokeRect(left + column * cell - 0.5, top + row * height - 0.5, cell, height);
      context.lineWidth = 1;
    }
  }

  cellAt(event) {
    if (!this.place) return null;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.place.left) / this.place.cell);
    const row = Math.floor((event.clientY - box.top - this.place.top) / this.place.height);
    return this.rows[row]?.[column] === undefined ? null : { row, column };
  }

  /** Selects a cell and shows its text, or clears the selection. */
  point(cell) {
    if (cell?.row === this.cursor?.row && cell?.column === this.cursor?.column) return;
    this.cursor = cell;
    this.readout.textContent = cell ? this.describe(cell.row, cell.column) : "\u00a0";
    this.draw();
  }

  pick(cell) {
    if (cell) this.onpick(cell.row, cell.column);
  }

  key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const at = this.cursor ?? this.first();
    if (!at) return;
    if (event.key === "Enter") this.pick(at);
    else if (steps[event.key]) {
      event.preventDefault();
      const [down, right] = steps[event.key];
      const row = Math.min(Math.max(at.row + down, 0), this.rows.length - 1);
      const column = Math.min(Math.max(at.column + right, 0), this.rows[row].length - 1);
      this.point({ row, column });
    }
  }
}
