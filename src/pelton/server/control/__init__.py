"""How a serving process follows the desired state: it watches the store, converges, judges rollouts and reports."""
