// What is to be read on a page, and whether it can be read.

/// Texts whose contrast is less than WCAG 2.2 AA asks for: 4.5, or 3 where they are large. Runs in the page.
export function faintTexts() {
  const parse = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const grey = ([r, g, b]) => Array(3).fill(0.2126 * r + 0.7152 * g + 0.0722 * b);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, n) => c * a + below[n] * (1 - a));
  const ancestors = (node) => node ? [...ancestors(node.parentElement), node] : [];
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("script, style, noscript, option, title")) continue;
    const style = getComputedStyle(element);
    let below = [255, 255, 255];
    const family = ancestors(element);
    for (const one of family) below = over(parse(getComputedStyle(one).backgroundColor), below);
    let text = over(parse(style.color), below);
    if (family.some((one) => getComputedStyle(one).filter.includes("grayscale"))) [text, below] = [grey(text), grey(below)];
    const [dark, light] = [luminance(text), luminance(below)].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    // A disabled control is exempt.
    if (ratio < (large ? 3 : 4.5) && !element.disabled) faint.push(`${node.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(faint)];
}

/// Elements that reach beyond the page's width, or are cut off by what they are in. Runs in the page.
export function cutOff() {
  const width = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll("body *")].filter((node) => {
    const box = node.getBoundingClientRect();
    return node.checkVisibility() && !node.closest("thead, svg, script, style") && box.width > 0 && (box.right > width + 1 || box.left < -1);
  });
  const cut = [...document.querySelectorAll(".card")].filter((card) => card.checkVisibility() && card.scrollWidth > card.clientWidth + 1);
  const page = document.documentElement.scrollWidth > width ? [`page ${document.documentElement.scrollWidth}`] : [];
  return page.concat([...wide, ...cut].map((node) => `${node.tagName} ${node.id} ${node.className}`));
}

/// Controls without a name. Runs in the page.
export function nameless() {
  const controls = [...document.querySelectorAll("button, a, input, select")].filter((node) => node.checkVisibility());
  return controls.filter((node) => !(node.textContent.trim() || node.getAttribute("aria-label") || node.labels?.length)).map((node) => node.outerHTML.slice(0, 80));
}
