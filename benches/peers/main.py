"""Runs the workloads turn by turn, so that what else the machine does falls on all alike, and prints a table of medians."""

import json
import os
import statistics
import sys

from content import Content
from peers import PEERS, Upstream
from workloads import COLD_TURNS, Bench, workloads


def main(work, wanted):
    rounds = int(os.environ.get("ROUNDS", 5))
    # bash sets SECONDS itself.
    seconds = float(os.environ.get("SECONDS_EACH", 2))
    names = os.environ.get("PEERS", " ".join(peer.name for peer in PEERS)).split()

    if unknown := set(names) - {peer.name for peer in PEERS}:
        raise SystemExit(f"no peer is called {', '.join(unknown)}; there are {', '.join(peer.name for peer in PEERS)}")
    if rounds >= COLD_TURNS:
        raise SystemExit(f"ROUNDS is at most {COLD_TURNS - 1}: there are so many blobs to be pulled cold")

    upstream = Upstream(work)
    say("making what the upstream has")
    bench = Bench(work, seconds, Content(upstream.dir))
    known = workloads(bench)
    if wanted == ["list"]:
        print("\n".join(f"{workload.name:14} {workload.what}" for workload in known))
        return
    if unknown := set(wanted) - {workload.name for workload in known}:
        raise SystemExit(f"no workload is called {', '.join(unknown)}; `list` names them")

    peers = [peer(work) for peer in PEERS if peer.name in names]
    upstream.start()
    for peer in peers:
        peer.start()
    turns = {}
    for workload in known:
        if wanted and workload.name not in wanted:
            continue
        asked = [peer for peer in peers if peer.tls_port or not workload.by_tls] + ([upstream] if workload.upstream_too else [])
        for number in range(rounds + 1 if rounds > 2 else rounds):
            say(f"{workload.name}, turn {number}")
            for peer in asked:
                turns.setdefault((workload.name, peer.name), []).append(workload.turn(peer, number))
        if rounds > 2:
            for peer in asked:
                turns[workload.name, peer.name].pop(0)
        row(workload, turns, [peer.name for peer in asked])
    for peer in [*peers, upstream]:
        peer.stop()
    table([workload for workload in known if not wanted or workload.name in wanted], turns, names)
    if out := os.environ.get("OUT"):
        figures = {f"{workload} {peer}": [turn.figures for turn in all] for (workload, peer), all in turns.items()}
        with open(out, "w") as file:
            json.dump(figures, file, indent=1)


def medians(all):
    return {key: statistics.median(turn.figures[key] for turn in all) for key in all[0].figures}


def row(workload, turns, names):
    for name in names:
        all = turns[workload.name, name]
        figures = ", ".join(f"{key} {short(value)}" for key, value in medians(all).items())
        notes = sorted({note for turn in all for note in turn.notes})
        print(f"{workload.name:12} {name:9} {figures} {'; '.join(notes)}", flush=True)


def table(known, turns, names):
    """As Markdown: the figure of each peer, and how many times better larder is."""
    print(f"\n| workload | unit | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for workload in known:
        values = {name: medians(turns[workload.name, name])["value"] for name in names if (workload.name, name) in turns}
        cells = []
        for name in names:
            if name not in values:
                cells.append("–")
                continue
            value, ratio = values[name], ""
            if name != "larder" and "larder" in values and value and values["larder"]:
                better = value / values["larder"] if workload.lower_is_better else values["larder"] / value
                ratio = f" ({better:.2f}×)"
            cells.append(short(value) + ratio)
        print(f"| {workload.what} | {workload.unit} | {' | '.join(cells)} |")


def short(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def say(what):
    print(f"… {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
