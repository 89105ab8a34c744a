// Run an exported model without Python: main MODEL.pt2 CALL.pt
// CALL.pt holds the inputs of a call and its result in Python; exit code 1 if they differ.

#include <iostream>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: main MODEL.pt2 CALL.pt\n";
    return 2;
  }
  c10::InferenceMode no_gradients;
  torch::jit::Module call = torch::jit::load(arguments[2]);
  std::vector<at::Tensor> inputs;
  at::Tensor wanted;
  for (const auto& buffer : call.named_buffers()) {
    if (buffer.name == "wanted") {
      wanted = buffer.value;
    } else {
      inputs.push_back(buffer.value);
    }
  }
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  std::vector<at::Tensor> outputs = model.run(inputs);
  const double difference = (outputs[0] - wanted).abs().max().item<double>();
  std::cout << outputs[0].sizes() << ", " << difference << " from Python's result\n";
  return difference < 1e-4 ? 0 : 1;
}
