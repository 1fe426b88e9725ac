"""The style sheet of reports: light and dark, wide and narrow screens, print; no external resources."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #5b6470; --rule: #d5dae0;
  --box: #f4f6f8; --c0: #0b61a4; --c1: #b34700; --c2: #1a7f4b; --c3: #8b3fa0; --c4: #8a6d00; --c5: #c0215f;
  --c6: #00798a; --c7: #555c66; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14181d; --faint: #9aa5b1;
  --rule: #353c45; --box: #1d2329; --c0: #6cb6ff; --c1: #ff9a57; --c2: #5fd39a; --c3: #d39be6; --c4: #e3c65b;
  --c5: #ff8ab3; --c6: #5fd0e0; --c7: #b4bcc6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .5rem; }
p, ul { max-width: 80ch; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .6rem 0; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
pre { background: var(--box); padding: .8rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; border: 1px solid var(--rule);
  border-radius: 4px; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .33rem .5rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--rule); }
thead th { background: var(--box); font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
.number { text-align: right; }
.note { color: var(--faint); font-size: .87rem; margin: .4rem 0; max-width: 110ch; }
iframe { width: 100%; height: 75vh; border: 1px solid var(--rule); border-radius: 4px; background: #ffffff; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 370px), 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
figure > svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--rule); stroke-width: 1; }
svg text.name { fill: var(--ink); }
.bar { stroke-width: 4; stroke-linecap: round; opacity: .45; }
.curve { fill: none; stroke-width: 1.7; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; color: var(--faint); }
.legend span { overflow-wrap: anywhere; }
.key { width: 26px; height: 12px; margin-right: .35rem; vertical-align: -1px; }
.curve.c0, .bar.c0 { stroke: var(--c0); } .point.c0 { fill: var(--c0); }
.curve.c1, .bar.c1 { stroke: var(--c1); } .point.c1 { fill: var(--c1); }
.curve.c2, .bar.c2 { stroke: var(--c2); } .point.c2 { fill: var(--c2); }
.curve.c3, .bar.c3 { stroke: var(--c3); } .point.c3 { fill: var(--c3); }
.curve.c4, .bar.c4 { stroke: var(--c4); } .point.c4 { fill: var(--c4); }
.curve.c5, .bar.c5 { stroke: var(--c5); } .point.c5 { fill: var(--c5); }
.curve.c6, .bar.c6 { stroke: var(--c6); } .point.c6 { fill: var(--c6); }
.curve.c7, .bar.c7 { stroke: var(--c7); } .point.c7 { fill: var(--c7); }
@media (max-width: 520px) { main { padding: 10px; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; } th, td { padding: .3rem .5rem; }
  tbody th { min-width: 8.5rem; max-width: 40vw; white-space: normal; overflow-wrap: anywhere; } }
@media print { :root { font-size: 11px; } body { font-size: 1rem; } h2, h3 { break-after: avoid; }
  main { max-width: none; padding: 0; } .scroll { overflow: visible;
  border: 0; } table { font-size: 8.5px; } th, td { padding: .15rem .3rem; white-space: normal; }
  pre { white-space: pre-wrap; } .panels { grid-template-columns: 1fr 1fr; } tbody th { position: static; } }
"""
