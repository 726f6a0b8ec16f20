// The console's manners in the browser: the chosen theme, buttons that copy, keys that go to pages, open menus that close,
// pages that stay fresh.
// It is loaded in the head and blocks, so that the remembered theme is there before the first paint. Without it every
// page works; what needs it is hidden by `html:not(.js)` in console.css.
(() => {
  "use strict";

  const root = document.documentElement;
  const KEY = "signalbox.theme";
  const THEMES = ["auto", "dark", "light"];

  root.classList.add("js");

  const remembered = () => {
    try {
      const theme = localStorage.getItem(KEY);
      return THEMES.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // storage is refused in some private windows
    }
  };

  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
    }
  };

  const choose = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // the choice then lasts as long as the page
    }
    show(theme);
  };

  const say = (text) => {
    const place = document.getElementById("announcement");
    if (place) place.textContent = text;
  };

  const copy = async (button) => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("is-copied");
    say(root.dataset.copied || "");
    setTimeout(() => button.classList.remove("is-copied"), 1500);
  };

  show(remembered());
  document.addEventListener("DOMContentLoaded", () => show(remembered()));
  addEventListener("storage", (event) => event.key === KEY && show(remembered()));

  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const theme = target?.closest("[data-theme-choice]");
    if (theme) choose(theme.dataset.themeChoice);
    const button = target?.closest("[data-copy]");
    if (button && navigator.clipboard) void copy(button);
    for (const menu of document.querySelectorAll("details[data-closes][open]")) {
      if (!menu.contains(target)) menu.open = false;
    }
  });

  // A page that says <meta name="refresh-seconds"> asks for itself again and takes over what stands in <main>: nothing
  // jumps. It waits while somebody has a menu open, types or marks text, and while the page is not looked at.
  const live = async () => {
    const main = document.getElementById("main");
    const focused = document.activeElement;
    const busy =
      document.hidden || main.querySelector("details[data-closes][open]") || !getSelection().isCollapsed ||
      (main.contains(focused) && focused !== main);
    if (busy) return;
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) location.reload(); // signed out meanwhile
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    main.replaceChildren(...fresh.getElementById("main").children);
    if (!fresh.querySelector('meta[name="refresh-seconds"]')) clearInterval(ticking);
  };
  let ticking = 0;
  document.addEventListener("DOMContentLoaded", () => {
    const seconds = Number(document.querySelector('meta[name="refresh-seconds"]')?.content);
    if (seconds > 0) ticking = setInterval(() => live().catch(() => {}), seconds * 1000); // offline: the next one tries again
  });

  // `g` and then a letter within a second goes to the page whose link says data-key="<letter>".
  let went = 0;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      for (const menu of document.querySelectorAll("details[data-closes][open]")) {
        menu.open = false;
        menu.querySelector("summary")?.focus();
      }
    }
    const typing = event.target instanceof Element && event.target.closest("input, textarea, select, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "g") {
      went = event.timeStamp;
      return;
    }
    const link = went && event.timeStamp - went < 1000 && document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    went = 0;
    if (link) {
      event.preventDefault();
      link.click();
    }
  });
})();
