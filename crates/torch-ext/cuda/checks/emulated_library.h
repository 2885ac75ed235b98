// Loads a library that emulator/entry.cpp builds, and launches its kernels.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

class EmulatedLibrary {
 public:
  explicit EmulatedLibrary(const char* path) : library(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (!library) fail(dlerror());
    find_function = reinterpret_cast<FindFunction>(symbol("emulated_function"));
    launch_function = reinterpret_cast<LaunchFunction>(symbol("emulated_launch"));
    last_error = reinterpret_cast<LastError>(symbol("emulated_error"));
  }
  // Returns the error of the launch, or an empty text. The types of the arguments must be those of
  // the kernel's parameters.
  template <class... Arguments>
  std::string launch(const char* kernel, Grid grid, Grid block, Arguments... arguments) const {
    void* const function = find_function(kernel);
    if (!function) fail((std::string("no kernel ") + kernel).c_str());
    void* parameters[] = {static_cast<void*>(&arguments)...};
    const int code =
        launch_function(function, grid.x, grid.y, grid.z, block.x, block.y, block.z, 0, nullptr, parameters, nullptr);
    const char* const error = last_error();
    if ((code == 0) != (error == nullptr)) fail("the code and the error text of a launch differ");
    return error ? error : "";
  }

 private:
  typedef void* (*FindFunction)(const char*);
  typedef int (*LaunchFunction)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                                void**, void**);
  typedef const char* (*LastError)();

  [[noreturn]] static void fail(const char* text) {
    fprintf(stderr, "%s\n", text);
    exit(2);
  }
  void* symbol(const char* name) const {
    void* const address = dlsym(library, name);
    if (!address) fail(dlerror());
    return address;
  }

  void* library;
  FindFunction find_function;
  LaunchFunction launch_function;
  LastError last_error;
};
