// Before anything is drawn: the colours that somebody has chosen here.
"use strict";
(() => {
  const chosen = localStorage.getItem("outbox-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
