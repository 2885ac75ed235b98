// Layout of a word cloud: the strongest word in the middle, the others on a spiral around it.

const FAMILY = "system-ui, sans-serif";
const GAP = 3; // pixels

const ruler = document.createElement("canvas").getContext("2d");

const overlaps = (a, b) =>
  a.x < b.x + b.width + GAP && b.x < a.x + a.width + GAP && a.y < b.y + b.height && b.y < a.y + a.height;

/**
 * Returns the positions of words in a box of `width` by `height` pixels: `[{x, y, width, height, item}]`. The layout is
 * deterministic. The first items are placed nearest to the middle; items that do not fit are omitted.
 * @param items `[{text, size, slanted}]`, with sizes in pixels
 */
export function placeWords(items, width, height) {
  const placed = [];
  for (const item of items) {
    ruler.font = `${item.slanted ? "italic " : ""}${item.size}px ${FAMILY}`;
    const box = { width: ruler.measureText(item.text).width + 4, height: item.size * 1.22, item };
    // An Archimedean spiral, flattened to the shape of the box.
    for (let turn = 0; turn < 90; turn += 0.15) {
      box.x = (width - box.width) / 2 + turn * 1.9 * Math.cos(turn);
      box.y = (height - box.height) / 2 + turn * 1.1 * Math.sin(turn);
      const inside = box.x >= 0 && box.y >= 0 && box.x + box.width <= width && box.y + box.height <= height;
      if (inside && !placed.some((other) => overlaps(box, other))) {
        placed.push({ ...box });
        break;
      }
    }
  }
  return placed;
}
