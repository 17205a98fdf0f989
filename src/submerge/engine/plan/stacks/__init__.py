"""Layers that are stacked: where each comes from, and whether the stack is a model of its class."""

from submerge.engine.plan.stacks._describe_stack import describe_stack, stack_facts
from submerge.engine.plan.stacks._plan_stack import as_models, plan_stack
from submerge.engine.plan.stacks._stack import StackPlan
from submerge.engine.plan.stacks._stack_architecture import architecture_problems

__all__ = ["StackPlan", "architecture_problems", "as_models", "describe_stack", "plan_stack", "stack_facts"]
