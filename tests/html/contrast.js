// [text, ratio] for every piece of text that is shown: WCAG 2's contrast of it with what lies behind it.
// Colours are drawn on a canvas and read back, so any notation and any transparency counts as the eye sees it.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const drawn = (colours) => {
  canvas.globalCompositeOperation = "copy";
  for (const colour of colours) {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    canvas.globalCompositeOperation = "source-over";
  }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const node = walker.currentNode, element = node.parentElement;
  if (!node.data.trim() || !element.checkVisibility() || !element.getClientRects().length) continue;
  const behind = [];
  let opacity = 1;
  for (let one = element; one; one = one.parentElement) {
    const style = getComputedStyle(one);
    behind.unshift(style.backgroundColor);
    opacity *= Number(style.opacity);
  }
  const ground = drawn(behind);
  const ink = drawn([...behind, getComputedStyle(element).color]);
  const seen = ink.map((value, at) => opacity * value + (1 - opacity) * ground[at]);
  const [light, dark] = [luminance(ground), luminance(seen)].sort((a, b) => b - a);
  found.push([node.data.trim(), Math.round(((light + 0.05) / (dark + 0.05)) * 100) / 100]);
}
return found;
