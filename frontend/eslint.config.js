import js from "@eslint/js";
import globals from "globals";

export default [
  js.configs.recommended,
  {
    rules: { eqeqeq: "error", "no-var": "error", "prefer-const": "error" },
    linterOptions: { reportUnusedDisableDirectives: "error" },
  },
  { files: ["frontend/static/js/**"], languageOptions: { globals: globals.browser } },
  { files: ["tests/js/**"], languageOptions: { globals: globals.nodeBuiltin } },
];
