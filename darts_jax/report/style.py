"""The style sheet of the page: system fonts, light and dark, and a layout for paper."""

CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#5c6570;--line:#dfe3e8;
--tint:#f6f7f9;--mark:#0072b2;--note:#fff7e6}
@media screen and (prefers-color-scheme:dark){:root{--paper:#15181d;--ink:#e6e8eb;
--soft:#a3abb5;--line:#2f353d;--tint:#1c2026;--mark:#4aa8e0;--note:#2a2415}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:32px 24px 64px;background:var(--paper);
color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,
sans-serif}
h1{font-size:27px;line-height:1.2;margin:0 0 6px}
h2{font-size:20px;margin:44px 0 12px;padding-top:12px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:22px 0 6px;color:var(--soft)}
p{margin:6px 0 12px}.lead{color:var(--soft);max-width:80ch}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:16px 0 0}
a{color:var(--mark);text-decoration:none}a:hover{text-decoration:underline}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:14px 0}
.card{border:1px solid var(--line);border-radius:8px;background:var(--tint);padding:10px 14px}
.card b{display:block;font-size:17px;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:12.5px}
aside{background:var(--note);border-radius:8px;padding:10px 16px;font-size:14px}
aside ul{margin:4px 0 0;padding-left:20px}
figure{margin:8px 0;overflow-x:auto}
svg{display:block;max-width:100%;height:auto}
.grid{display:grid;gap:8px 24px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:5px 18px 5px 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
th{font-weight:600;white-space:nowrap}thead th{color:var(--soft)}
td{overflow-wrap:break-word;max-width:460px}td.n{text-align:right;white-space:nowrap}th.n{text-align:right}
details{margin:8px 0}summary{cursor:pointer;color:var(--mark)}
pre{background:var(--tint);border:1px solid var(--line);border-radius:8px;padding:12px;
overflow-x:auto;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace}
@media print{body{max-width:none;padding:0;font-size:11pt}nav{display:none}
h2{break-after:avoid}h3{break-after:avoid}figure,.card,tr{break-inside:avoid}
.grid{grid-template-columns:1fr 1fr}figure,.scroll{overflow:visible}
table{font-size:8pt}th,td{padding:3px 9px 3px 0}th{white-space:normal}pre{white-space:pre-wrap}}
"""
