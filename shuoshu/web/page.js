// Runs before Gradio's scripts. Chooses the language, shows the alternatives of a piece of text,
// says why a request was refused, and fits the training report's frame to its content.
(() => {
  // ---------------------------------------------------------------- language

  function storedLanguage() {
    try { return localStorage.getItem("language"); } catch { return null; } // storage may be off
  }
  function storeLanguage(language) {
    try { localStorage.setItem("language", language); } catch { /* lasts until the next reload */ }
  }
  const language = storedLanguage() || (/^zh/i.test(navigator.language) ? "zh" : "en");
  const locale = language === "zh" ? "zh-CN" : "en";
  const text = (key) => window.shuoshuTexts[key][language];

  // Gradio reads the language of its own texts from navigator, once, when it starts.
  Object.defineProperty(navigator, "language", { get: () => locale, configurable: true });
  Object.defineProperty(navigator, "languages", { get: () => [locale], configurable: true });
  const root = document.documentElement;
  root.classList.add(language); // page.css hides the other language
  root.lang = locale;
  new MutationObserver(() => { // Gradio sets its own
    if (root.lang !== locale) root.lang = locale;
  }).observe(root, { attributes: true, attributeFilter: ["lang"] });

  const WRITTEN = "#story textarea, #judged-text textarea, #judged-lines-text textarea";
  function switchLanguage() {
    const hasText = document.querySelector("#conversation .message")
      || [...document.querySelectorAll(WRITTEN)].some((box) => box.value);
    if (hasText && !confirm(text("change_language"))) return;
    storeLanguage(language === "zh" ? "en" : "zh");
    location.reload();
  }

  // ---------------------------------------------------------------- answers

  // A click that opens the passages under an answer must not also look inside it.
  addEventListener("click", (event) => {
    if (event.target.closest?.("#conversation details")) event.stopPropagation();
  }, true);

  // ---------------------------------------------------------------- look inside

  function percent(p) { // two digits, three below 10%
    if (p >= 0.0995) return Math.round(100 * p) + "%";
    return (100 * p).toFixed(p >= 0.0095 ? 1 : 2) + "%";
  }
  function visible(token) { // null: the end of the text
    if (token === null) return text("end_of_text");
    return token.replace(/\n/g, "↵").replace(/^ | $/g, "␣");
  }
  function element(tag, content = "") {
    const made = document.createElement(tag);
    made.textContent = content;
    return made;
  }
  function alternativeItem([token, p]) {
    const bar = element("span");
    bar.className = "bar";
    bar.style.width = Math.max(1, 100 * p) + "%";
    const item = element("li");
    item.append(element("b", visible(token)), element("small", percent(p)), bar);
    return item;
  }
  function choosePiece(piece) {
    const view = piece.closest(".inside");
    for (const other of view.querySelectorAll('.piece[aria-pressed="true"]')) {
      other.setAttribute("aria-pressed", "false");
      other.tabIndex = -1;
    }
    piece.setAttribute("aria-pressed", "true");
    piece.tabIndex = 0; // Tab leads back to the chosen piece
    piece.focus();
    const shown = visible(piece.textContent.replace("↵\n", "\n"));
    const head = element("p", `「${shown}」 ${percent(+piece.dataset.p)}${text("alternatives")}`);
    const list = element("ol");
    list.append(...JSON.parse(piece.dataset.others).map(alternativeItem));
    view.querySelector(".chosen").replaceChildren(head, list);
  }

  addEventListener("click", (event) => {
    const piece = event.target.closest?.("button.piece");
    if (piece) choosePiece(piece);
    if (event.target.closest?.("#language")) switchLanguage();
  });
  addEventListener("keydown", (event) => {
    const piece = event.target.closest?.("button.piece");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!piece || !step) return;
    const pieces = [...piece.closest(".pieces").querySelectorAll("button.piece")];
    const next = pieces[pieces.indexOf(piece) + step];
    if (next) choosePiece(next);
    event.preventDefault();
  });

  // ---------------------------------------------------------------- refused requests

  // Gradio shows an error without a message for these statuses.
  const REFUSALS = { 413: "too_large", 503: "queue_full" };
  const ALERT_MILLISECONDS = 8000;
  const originalFetch = window.fetch;
  window.fetch = async (...request) => {
    const response = await originalFetch(...request);
    const url = String(request[0]?.url ?? request[0]);
    const refusal = REFUSALS[response.status];
    if (refusal && url.includes("/queue/join")) {
      const banner = element("div", text(refusal));
      banner.className = "page-alert";
      banner.setAttribute("role", "alert");
      document.body.append(banner);
      setTimeout(() => banner.remove(), ALERT_MILLISECONDS);
    }
    return response;
  };

  // ---------------------------------------------------------------- training report

  // The report is a document of its own in a frame. It gets the page's language and no scroll bar.
  document.addEventListener("load", (event) => {
    const frame = event.target;
    if (frame.tagName !== "IFRAME" || !frame.classList.contains("report")) return;
    const report = frame.contentDocument;
    report.documentElement.className = language + " framed";
    report.documentElement.lang = language;
    const fit = () => { frame.style.height = report.documentElement.scrollHeight + 4 + "px"; };
    new frame.contentWindow.ResizeObserver(fit).observe(report.body);
    fit();
  }, true); // load events don't bubble, so catch them on the way down
})();
