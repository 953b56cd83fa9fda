"""Chapter 11: methods in interpretability.

| section | task |
|---|---|
| Overview | prose, nothing to run |
| Decision Trees and Tree-Based Algorithms | `trees` |
| Linear Regression | `linear_regression` |
| Methods for Evaluating Feature Importance: Permutation Feature Importance | `perm_importance` |
| Methods for Evaluating Feature Importance: Partial Dependence Plots | `pdp` |
| Extractive Rationalization | `rationale` |
| LIME | `lime` |
| SHAP | `shap` |
"""

HEADLINE = "shap"
