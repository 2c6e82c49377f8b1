// The Python side of a library whose operators register themselves when it is loaded: an import
// hook and a few string constants for `atrousx info`. Limited API, so one file serves every
// Python 3.
#pragma once

#include <Python.h>

namespace atrousx {

struct ModuleString {
  const char* name;
  const char* value;
};

template <int N>
PyObject* make_module(const char* name, const ModuleString (&strings)[N]) {
  static PyModuleDef definition;
  definition.m_base = PyModuleDef_HEAD_INIT;
  definition.m_name = name;
  definition.m_size = -1;
  PyObject* module = PyModule_Create(&definition);
  for (const ModuleString& s : strings)
    if (module != nullptr && PyModule_AddStringConstant(module, s.name, s.value) != 0) {
      Py_DECREF(module);
      return nullptr;
    }
  return module;
}

}  // namespace atrousx
