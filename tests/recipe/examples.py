"""Recipes as people write them for mergekit: the wording is ours, the shape is theirs."""

EXAMPLES = {
    "gradient slerp": """\
merge_method: slerp
base_model: org/chat-7b
models:
  - model: org/chat-7b
  - model: org/code-7b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # all other tensors
dtype: bfloat16
tokenizer_source: base
""",
    "ties": """\
models:
  - model: org/base-7b
    # the base takes no parameters
  - model: org/math-7b
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: org/code-7b@v2
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base-7b
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
    "dare_ties": """\
models:
  - model: ./math
    parameters: {density: 0.53, weight: 0.4}
  - model: ./code/
    parameters: {density: 0.53, weight: 0.3}
  - model: ./chat
    parameters: {density: 0.53, weight: 3e-1}
merge_method: dare_ties
base_model: ./base
parameters:
  lambda: 1.1
out_dtype: bfloat16
tokenizer:
  source: ./chat
""",
    "linear": """\
models:
  - model: org/a
    parameters:
      weight: 1.0
  - model: org/b
    parameters:
      weight: 0.3
merge_method: linear
dtype: float16
""",
    "linear over everything": """\
merge_method: linear
models: [{model: a}, {model: b}, {model: c}]
parameters: {weight: 1, normalize: false}
out_dtype: fp32
""",
    "model_stock": """\
models:
  - model: org/a
  - model: org/b
  - model: org/c
base_model: org/base
merge_method: model_stock
parameters:
  filter_wise: true
dtype: bfloat16
""",
    "task_arithmetic": """\
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters:
      weight: {filter: layers, value: [0.1, 0.9]}
  - model: b
parameters:
  weight: 0.25
""",
    "della": """\
merge_method: della
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.7, epsilon: 0.05}
  - model: b
    parameters: {weight: 0.5}
parameters: {density: 0.4, normalize: {filter: mlp, value: false}}
""",
    "breadcrumbs": """\
merge_method: breadcrumbs_ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}
  - model: b
    parameters: {weight: 0.5, density: 0.9}
""",
    "nuslerp": """\
merge_method: nuslerp
models:
  - model: a
    parameters: {weight: 0.4}
  - model: b
    parameters: {weight: 0.6}
parameters: {nuslerp_flatten: false}
""",
    "karcher": """\
merge_method: karcher
models: [{model: a}, {model: b}]
parameters: {tol: 1e-9, max_iter: 20}
""",
    "multislerp": """\
merge_method: multislerp
base_model: x
models:
  - model: a
    parameters: {weight: 0.4}
  - model: b
    parameters: {weight: 0.6}
parameters: {normalize_weights: false, eps: 1e-9}
""",
    "nearswap": """\
merge_method: nearswap
base_model: x
models: [{model: x}, {model: a}]
parameters: {t: [0.0001, 0.01]}
""",
    "arcee_fusion": """\
merge_method: arcee_fusion
base_model: x
models: [{model: a}]
""",
    "ram": """\
merge_method: ram
base_model: x
models: [{model: a}, {model: b}]
parameters: {epsilon: 1e-4}
""",
    "ramplus_tl": """\
merge_method: ramplus_tl
base_model: x
models: [{model: a}, {model: b}]
parameters: {r: 0.2, alpha: 0.5}
""",
    "sce": """\
merge_method: sce
base_model: x
models: [{model: a}, {model: b}]
parameters: {select_topk: 0.1}
""",
    "passthrough": """\
merge_method: passthrough
models:
  - model: a
    parameters: {scale: [{filter: q_proj, value: 2}]}
""",
}
