// Light and dark: as the system has it, or as chosen; on paper light.

const THEMES = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" };
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
let onPaper = false;
let afterThemeChange = () => {};

const isDark = () => !onPaper && (theme === "dark" || (theme === "auto" && systemIsDark.matches));
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function showTheme() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  byId("theme").textContent = THEMES[theme];
  byId("theme").setAttribute("aria-label", `Colours: ${theme}`);
  afterThemeChange();
}

function setTheme(name) {
  theme = name in THEMES ? name : "auto";
  try {
    localStorage.setItem("a2tgpo-theme", theme);
  } catch {} // a browser that keeps nothing for pages from disk
  showTheme();
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(theme) + 1) % names.length]);
}

function initTheme() {
  try {
    theme = localStorage.getItem("a2tgpo-theme") ?? "auto";
  } catch {}
  if (!(theme in THEMES)) theme = "auto";
  systemIsDark.addEventListener("change", showTheme);
  byId("theme").addEventListener("click", nextTheme);
  showTheme();
}

/** A colour by its number; those after the last begin again, below 0 from the end. */
function color(number) {
  const colors = data.overview.palette[isDark() ? "dark" : "light"];
  return colors.at(number % colors.length);
}
