#!/usr/bin/env bash
# Renders the world into the current folder: train 40,000, val 1,500, 12 edits x 48 counterfactual pairs and x 40 of unseen faces (2 GB, a few minutes).
set -e
here=$(dirname "$0")
[ -d "$here/node_modules" ] || npm --prefix "$here" install --silent
node "$here/render.mjs" 1500 99 val
node "$here/render.mjs" 48 7 pairs pairs
node "$here/render.mjs" 40 23 unseen pairs
node "$here/render.mjs" 40000 11 train
