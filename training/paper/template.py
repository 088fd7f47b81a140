"""The page's HTML; nothing in it is loaded from elsewhere."""

from __future__ import annotations

__all__ = ["PAGE"]

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The experiments of arXiv:2307.16723 on {{ protocol.data.name }}</title>
<style>
:root { --ink: #1c1e21; --soft: #5d6470; --line: #d8dce2; --back: #fff; --band: #f5f6f8; --good: #00674b; --bad: #a83f00; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--back); font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, li { max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0; font-size: .95rem; }
a { color: #00568b; }
.notice { max-width: 48rem; border-left: 4px solid var(--bad); background: var(--band); padding: .6rem 1rem; margin: 1rem 0; }
.notice p { margin: .4rem 0; } .notice ul { margin: .2rem 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; min-width: 50%; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; }
tbody th { font-weight: 500; }
td { font-variant-numeric: tabular-nums; }
.findings td { width: 42%; }
.findings td:last-child { width: 16%; white-space: nowrap; }
.mark { font-weight: 600; }
.agrees { color: var(--good); } .differs { color: var(--bad); } .open { color: var(--soft); }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { max-width: 46rem; margin-top: .5rem; }
@media print { main { max-width: none; padding: 0; } h2 { break-before: page; } figure, table { break-inside: avoid; } nav { display:
none; } }
</style>
</head>
<body>
<main>
{% macro table(content, kind="") %}
<div class="scroll"><table class="{{ kind }}">
<caption>{{ content.caption }}</caption>
<thead><tr>{% for cell in content.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in content.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
{% macro findings(items) %}
<div class="scroll"><table class="findings">
<thead><tr><th scope="col">the paper</th><th scope="col">here</th><th scope="col">verdict</th></tr></thead>
<tbody>
{% for finding in items %}
<tr><td>{{ finding.paper }}</td><td>{{ finding.ours }}</td><td class="mark {{ classes[finding.agrees] }}">{{ finding.verdict }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
<h1>The experiments of “Hybrid quantum transfer learning for crack image classification on NISQ hardware”, repeated on
{{ protocol.data_name }}</h1>
<p class="soft">Paper: Geng, Moghiseh, Redenbach and Schladitz 2023, <a href="https://arxiv.org/abs/2307.16723">arXiv:2307.16723</a>.
Made on {{ machine.date }} by hqtl {{ machine.hqtl }} (<code>hqtl-train paper</code>).</p>
<nav>{% for section in sections %}<a href="#{{ section.name }}">{{ section.title }}</a>{% endfor %}<a href="#made">How this was
made</a></nav>
<div class="notice">
<p><strong>Stand-ins.</strong> No machine of the paper exists any more, and nothing on this page ran on quantum hardware:</p>
<ul>{% for device in devices %}<li>{{ device.name }} {{ device.note }}.</li>{% endfor %}</ul>
{% if random %}<p><strong>Random weights.</strong> ImageNet weights could not be had for {{ random|join(" and ") }}: figures with it show
what random
features give, not what that network gives.</p>{% endif %}
<p><strong>Other data.</strong> The paper's patches are not public. Accuracies on other images cannot confirm or refute the paper's;
what can be compared is how methods, devices, layers and times relate.</p>
</div>
{% for section in sections %}
<section id="{{ section.name }}">
<h2>{{ section.title }}</h2>
<p>{{ section.setting }}</p>
{% for item in section.pictures %}
<figure><img src="{{ picture(item.stem) }}" alt="{{ item.caption }}">
<figcaption>{{ item.caption }} Files: {{ item.stem }}.{{ formats|join(", ." ) }}.</figcaption></figure>
{% endfor %}
<h3>Beside the paper</h3>
{{ findings(section.findings) }}
{% for content in section.tables %}{{ table(content) }}{% endfor %}
{% if section.decisions %}<h3>What the paper leaves open, and what was decided</h3>
<ul>{% for decision in section.decisions %}<li>{{ decision }}</li>{% endfor %}</ul>{% endif %}
<p class="soft">Data: {{ section.name }}.csv, {{ section.name }}.json</p>
</section>
{% endfor %}
<section id="made">
<h2>How this was made</h2>
{{ table(splits) }}
<p>Data: {{ protocol.data_name }}, grouped by {{ protocol.group_by }}. Weights:
{% for backbone, weights in protocol.weights.items() %}{{ backbone }}
{{ "random" if weights == "none" else weights }}{{ ", " if not loop.last }}{% endfor %}.
Seeds 0 to {{ protocol.seeds - 1 }} on the split with seed 0. Every training keeps its options, figures per epoch and predictions below
<code>runs/</code>.</p>
{% if protocol.group_by == "none" %}<p>Patches of one photograph may lie on both sides of the split, as in the paper, which does not group
them:
such accuracies are optimistic. <code>--group-by source</code> keeps them apart; the comparison with the classical twin is
grouped.</p>{% endif %}
{% for ratio, count in leaked.items() %}<p>At {{ ratio }}, {{ count }} images of the validation and test split are byte for byte equal
to one that was trained on: figures look too good.</p>{% endfor %}
<p>{{ total }} in all, {{ total_cpu }} of processor time, in {{ sessions|length }} call{{ "s" if sessions|length != 1 }} of the command;
{{ machine.workers }} worker process{{ "es" if machine.workers != 1 }} on {{ machine.cores }} cores ({{ machine.processor }},
{{ machine.platform }}).
Python {{ machine.python }}, {% for name, found in machine.packages.items() %}{{ name }}
{{ found }}{{ ", " if not loop.last }}{% endfor %}.</p>
</section>
</main>
</body>
</html>
"""
