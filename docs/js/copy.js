// The copy button of a console block takes the commands alone: no prompt, no output.
document.addEventListener(
  "click",
  (event) => {
    const button = event.target.closest("[data-clipboard-target]");
    const code = button && document.querySelector(button.dataset.clipboardTarget);
    if (!code || !code.querySelector(".gp")) return;
    const copy = code.cloneNode(true);
    for (const other of copy.querySelectorAll(".gp, .go")) other.remove();
    const lines = copy.textContent.split("\n").filter((line) => line.trim());
    button.setAttribute("data-clipboard-text", lines.join("\n"));
  },
  true,
);
