"""Keeping model text from being executed.

Some Reasoning Gym scorers call `eval` (or sympy's `parse_expr`, which evals) on the answer. A policy under
reinforcement learning tries everything, so what may reach them is limited here to plain data and plain
formulas: no calls but mathematical functions, no attributes, no towers of powers that never finish.
"""

from __future__ import annotations

import ast

# eval(answer), to give partial marks to a Python list
_LITERAL_TASKS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
# sympy.parse_expr(answer)
_EXPRESSION_TASKS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
_LITERAL_NODES = (
    *(ast.Expression, ast.Load, ast.List, ast.Tuple),
    *(ast.Constant, ast.Name, ast.UnaryOp, ast.USub),
)
_EXPRESSION_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call),
    *(ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow),
)
_FUNCTIONS = frozenset(
    {
        *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan"),
        *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        *("exp", "log", "ln", "sqrt", "Abs"),
    }
)
_CONSTANTS = frozenset({"pi", "E"})
_MAX_CHARACTERS = 2000
_MAX_EXPONENT = 1000
_MAX_NESTED_POWERS = 2


def is_safe_answer(task: str, answer: str) -> bool:
    """Whether the task's scorer may be given this answer."""
    if task in _LITERAL_TASKS:
        return _is_data_or_text(answer)
    if task in _EXPRESSION_TASKS:
        return _is_formula(answer)
    return True


def _parse(text: str) -> ast.Expression | None:
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_data_or_text(text: str) -> bool:
    tree = _parse(text)
    return tree is None or all(isinstance(node, _LITERAL_NODES) for node in ast.walk(tree))


def _is_formula(text: str) -> bool:
    tree = _parse(text) if len(text) <= _MAX_CHARACTERS else None
    if tree is None:
        return False
    return all(_is_formula_node(node) for node in ast.walk(tree)) and _power_depth(tree) <= _MAX_NESTED_POWERS


def _is_formula_node(node: ast.AST) -> bool:
    if not isinstance(node, _EXPRESSION_NODES):
        return False
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and abs(node.value) < 1e12
    if isinstance(node, ast.Name):
        return len(node.id) == 1 or node.id in _FUNCTIONS | _CONSTANTS
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small_exponent(node.right)
    return True


def _is_small_exponent(exponent: ast.expr) -> bool:
    """No number above the limit and no way to build one; with a variable in it nothing is multiplied out."""
    nodes = list(ast.walk(exponent))
    numbers = [node.value for node in nodes if isinstance(node, ast.Constant)]
    if any(not isinstance(number, int | float) or abs(number) > _MAX_EXPONENT for number in numbers):
        return False
    growing = (ast.Pow,) if _has_variable(exponent) else (ast.Pow, ast.Mult, ast.Call)
    return not any(isinstance(node, growing) for node in nodes)


def _has_variable(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and len(node.id) == 1 for node in ast.walk(tree))


def _power_depth(tree: ast.AST) -> int:
    depth = max((_power_depth(child) for child in ast.iter_child_nodes(tree)), default=0)
    return depth + (isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow))
