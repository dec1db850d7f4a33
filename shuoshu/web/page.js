// Runs before Gradio does: the language (its own messages follow navigator.language), then what the page's own parts do when used.
(() => {
  const stored = (() => { try { return localStorage.getItem("language"); } catch { return null; } })();
  const language = stored || (/^zh/i.test(navigator.language) ? "zh" : "en");
  const code = { zh: "zh-CN", en: "en" }[language] || "en";
  for (const [name, value] of [["language", code], ["languages", [code]]])
    Object.defineProperty(navigator, name, { get: () => value, configurable: true });
  document.documentElement.className += " " + language;
  document.documentElement.lang = code;
  new MutationObserver(() => { if (document.documentElement.lang !== code) document.documentElement.lang = code; })
    .observe(document.documentElement, { attributes: true, attributeFilter: ["lang"] });

  const say = (zh, en) => (language === "zh" ? zh : en);
  const percent = (p) => (p >= 0.0995 ? Math.round(100 * p) + "%" : (100 * p).toFixed(p >= 0.0095 ? 1 : 2) + "%");
  const visible = (word) => (word === null ? say("（结束）", "(the end)") : word.replace(/\n/g, "↵").replace(/^ | $/g, "␣"));

  function choose(piece) {
    const box = piece.closest(".inside"), chosen = box.querySelector(".chosen");
    for (const other of box.querySelectorAll('.piece[aria-pressed="true"]')) { other.setAttribute("aria-pressed", "false"); other.tabIndex = -1; }
    piece.setAttribute("aria-pressed", "true");
    piece.tabIndex = 0;
    piece.focus();
    const list = document.createElement("ol"), head = document.createElement("p");
    head.textContent = "「" + visible(piece.textContent.replace("↵\n", "\n")) + "」 " + percent(+piece.dataset.p) +
      say("。最可能的几个：", ". The likeliest here:");
    for (const [word, p] of JSON.parse(piece.dataset.others)) {
      const item = document.createElement("li"), bar = document.createElement("span"), told = document.createElement("b"), share = document.createElement("small");
      told.textContent = visible(word);
      share.textContent = percent(p);
      bar.className = "bar";
      bar.style.width = Math.max(1, 100 * p) + "%";
      item.append(told, share, bar);
      list.append(item);
    }
    chosen.replaceChildren(head, list);
  }
  addEventListener("click", (event) => {
    const piece = event.target.closest?.("button.piece");
    if (piece) choose(piece);
    const written = document.querySelector("#talk .message") || document.querySelector("#story textarea")?.value;
    const question = say("换语言会重新打开网页，写过的就没有了。要换吗？", "Changing the language opens the page anew; what was written goes. Change it?");
    if (event.target.closest?.("#language") && (!written || confirm(question))) {
      try { localStorage.setItem("language", language === "zh" ? "en" : "zh"); } catch { /* it lasts as long as the page then */ }
      location.reload();
    }
  });
  addEventListener("keydown", (event) => {
    const piece = event.target.closest?.("button.piece"), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!piece || !step) return;
    const all = [...piece.closest(".pieces").querySelectorAll("button.piece")], next = all[all.indexOf(piece) + step];
    if (next) choose(next);
    event.preventDefault();
  });

  // A full queue is an error without words in Gradio.
  const fetched = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await fetched(...asked), url = String(asked[0]?.url ?? asked[0]);
    if (answer.status === 503 && url.includes("/queue/join")) {
      const told = document.createElement("div");
      told.className = "told";
      told.setAttribute("role", "alert");
      told.textContent = say("排队的人满了，请过一会儿再试。", "The queue is full: please try again in a moment.");
      document.body.append(told);
      setTimeout(() => told.remove(), 8000);
    }
    return answer;
  };

  // The training tab shows a document of its own in a frame: as high as its content, in the page's language.
  document.addEventListener("load", (event) => {
    const frame = event.target;
    if (frame.tagName !== "IFRAME" || !frame.classList.contains("report")) return;
    const inner = frame.contentDocument;
    inner.documentElement.className = language + " framed";
    inner.documentElement.lang = language;
    const fit = () => { frame.style.height = inner.documentElement.scrollHeight + 4 + "px"; };
    new frame.contentWindow.ResizeObserver(fit).observe(inner.body);
    fit();
  }, true);
})();
