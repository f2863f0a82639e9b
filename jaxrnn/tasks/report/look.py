"""The style sheet and the script of a report, which load nothing."""

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #59636e;
  --line: #d5dbe1; --panel: #f4f6f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --text: #e4e8ec;
  --soft: #9aa5b1; --line: #343c45; --panel: #1d232a; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 .3rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.score { font-size: 1.9rem; font-weight: 650; margin: .8rem 0 0; line-height: 1.25; }
.score small { font-size: 1rem; font-weight: 400; color: var(--soft); }
.note { border-left: 4px solid var(--accent); background: var(--panel);
  padding: .5rem .8rem; }
.wide { overflow-x: auto; }
.number { white-space: nowrap; }
table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .32rem .7rem .32rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th[scope=row] { font-weight: 500; overflow-wrap: normal; }
thead th { color: var(--soft); font-weight: 500; }
figure { margin: .8rem 0; }
figure.picture { background: #ffffff; padding: .4rem; border: 1px solid var(--line);
  border-radius: 6px; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
pre { background: var(--panel); padding: .7rem .8rem; border-radius: 6px;
  margin: .5rem 0;
  font: .86rem/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content;
  gap: .25rem .7rem; align-items: center; font-size: .92rem; margin: .6rem 0; }
.bars span { overflow-wrap: anywhere; }
.bar { background: var(--panel); height: .8rem; border-radius: 3px; }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--soft); }
.bar i.own { background: var(--accent); }
.choose { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; margin: .6rem 0; }
select { font: inherit; color: inherit; background: var(--panel); padding: .2rem .4rem;
  border: 1px solid var(--line); border-radius: 5px; max-width: 100%; }
.reading { line-height: 1.75; font-size: 1rem; white-space: break-spaces; }
.reading span { border-radius: 2px; }
.scale { display: flex; align-items: center; gap: .5rem; font-size: .85rem;
  color: var(--soft); }
.scale i { flex: 0 1 9rem; height: .7rem; border-radius: 3px; }
summary { cursor: pointer; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""

SCRIPT = """
(function () {
  "use strict";
  var source = document.getElementById("reading-data");
  if (!source) { return; }
  var data = JSON.parse(source.textContent);
  var view = document.getElementById("view"), unit = document.getElementById("unit");
  var text = document.getElementById("reading-text");
  var least = document.getElementById("least"), most = document.getElementById("most");
  var ramp = document.getElementById("ramp");
  var high = "rgba(0,114,178,", low = "rgba(213,94,0,";
  function option(list, value, label) {
    var made = document.createElement("option");
    made.value = value;
    made.textContent = label;
    list.appendChild(made);
  }
  data.views.forEach(function (one, i) { option(view, i, one.name); });
  var spans = data.symbols.map(function (symbol) {
    var span = document.createElement("span");
    span.textContent = symbol === "\\n" ? "\\u23ce\\n" : symbol + data.between;
    text.appendChild(span);
    return span;
  });
  function paint() {
    var one = data.views[view.value], row = one.values[unit.value];
    spans.forEach(function (span, t) {
      var share = row[t] / 100;
      span.style.background =
        (share < 0 ? low : high) + Math.min(Math.abs(share), 1) * 0.75 + ")";
      span.title = (share * one.scale).toPrecision(3);
    });
    var signed = one.values.some(function (values) {
      return values.some(function (value) { return value < 0; });
    });
    least.textContent = signed ? (-one.scale).toPrecision(3) : "0";
    most.textContent = one.scale.toPrecision(3);
    ramp.style.background = "linear-gradient(to right, " +
      (signed ? low + "0.75), transparent, " : "transparent, ") + high + "0.75))";
  }
  function fill() {
    var kept = unit.value;
    unit.textContent = "";
    data.views[view.value].units.forEach(function (name, i) { option(unit, i, name); });
    if (kept && kept < unit.length) { unit.value = kept; }
    paint();
  }
  view.addEventListener("change", fill);
  unit.addEventListener("change", paint);
  fill();
})();
"""
