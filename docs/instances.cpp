// Instances in an image with onnxruntime's C++ interface: ./instances model.onnx image.ppm
//
// Reads a binary PPM of 8 bits (P6). Prints one JSON object a line, best first: label, score, bbox (x, y, width, height)
// and the mask as COCO's run lengths (size, counts). All that depends on the model is in the file's metadata.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

using Plane = std::vector<float>;  // rows one after the other
struct Size { int height, width; };
struct Instance { float score; int label; std::vector<char> mask; };

// The strings (keys too, in their order) and numbers of a metadata value, which is JSON text.
std::vector<std::string> strings_of(const std::string& json) {
    std::vector<std::string> found;
    for (size_t at = json.find('"'); at != std::string::npos; at = json.find('"', at + 1)) {
        std::string text;
        for (++at; at < json.size() && json[at] != '"'; ++at) text += json[at] == '\\' ? json[++at] : json[at];
        found.push_back(text);
    }
    return found;
}

std::vector<double> numbers_of(const std::string& json) {
    std::string rest;
    bool quoted = false;
    for (size_t at = 0; at < json.size(); ++at) {
        if (quoted && json[at] == '\\') { ++at; continue; }
        if (json[at] == '"') quoted = !quoted;
        const bool part = !quoted && std::string("+-.eE0123456789").find(json[at]) != std::string::npos;
        rest += part ? json[at] : ' ';
    }
    std::istringstream words(rest);
    std::vector<double> found;
    for (std::string word; words >> word;)
        if (word.find_first_of("0123456789") != std::string::npos) found.push_back(std::stod(word));
    return found;
}

std::string quoted(const std::string& text) {
    std::string found = "\"";
    for (char one : text) found += (one == '"' || one == '\\') ? std::string{'\\', one} : std::string{one};
    return found + '"';
}

// Which old values each new one is made of, and their weights: linear, or the average of what a smaller pixel covers.
std::vector<std::vector<std::pair<int, float>>> weights(int from, int to, bool average) {
    std::vector<std::vector<std::pair<int, float>>> found(to);
    const double scale = double(from) / to;
    for (int place = 0; place < to; ++place) {
        if (average && from > to) {
            const double start = place * scale, end = std::min((place + 1) * scale, double(from));
            for (int old = int(start); old < from && old < end - 1e-9; ++old)
                found[place].push_back({old, float((std::min(end, old + 1.0) - std::max(start, double(old))) / (end - start))});
        } else {
            const double at = std::max(0.0, (place + 0.5) * scale - 0.5);
            const int low = std::min(int(at), from - 1);
            found[place] = {{low, float(1 - (at - low))}, {std::min(low + 1, from - 1), float(at - low)}};
        }
    }
    return found;
}

Plane resize(const float* values, int stride, Size from, Size to, bool average) {
    const auto down = weights(from.height, to.height, average), along = weights(from.width, to.width, average);
    Plane rows(size_t(from.height) * to.width), found(size_t(to.height) * to.width);
    for (int y = 0; y < from.height; ++y)
        for (int x = 0; x < to.width; ++x)
            for (auto [old, weight] : along[x]) rows[size_t(y) * to.width + x] += weight * values[size_t(y) * stride + old];
    for (int y = 0; y < to.height; ++y)
        for (auto [old, weight] : down[y])
            for (int x = 0; x < to.width; ++x) found[size_t(y) * to.width + x] += weight * rows[size_t(old) * to.width + x];
    return found;
}

std::vector<Plane> read_ppm(const std::string& name, Size& size) {
    std::ifstream file(name, std::ios::binary);
    std::string kind;
    int most = 0;
    file >> kind >> size.width >> size.height >> most;
    file.get();
    if (!file || kind != "P6" || most != 255) throw std::runtime_error(name + ": expected a binary PPM (P6) of 8 bits");
    std::vector<unsigned char> bytes(size_t(size.height) * size.width * 3);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), bytes.size())) throw std::runtime_error(name + ": cut short");
    std::vector<Plane> planes(3, Plane(bytes.size() / 3));
    for (size_t place = 0; place < bytes.size(); ++place) planes[place % 3][place / 3] = bytes[place];
    return planes;
}

void print(const Instance& one, Size size, const std::string& label) {
    int x0 = size.width, y0 = size.height, x1 = 0, y1 = 0;
    std::vector<size_t> counts{0};  // down the columns, background first
    for (int x = 0; x < size.width; ++x)
        for (int y = 0; y < size.height; ++y) {
            const bool inside = one.mask[size_t(y) * size.width + x];
            if (inside != (counts.size() % 2 == 0)) counts.push_back(0);
            ++counts.back();
            if (inside) x0 = std::min(x0, x), y0 = std::min(y0, y), x1 = std::max(x1, x + 1), y1 = std::max(y1, y + 1);
        }
    std::printf("{\"label\": %s, \"score\": %.6f, \"bbox\": [%d, %d, %d, %d], \"size\": [%d, %d], \"counts\": [", quoted(label).c_str(),
                one.score, x0, y0, x1 - x0, y1 - y0, size.height, size.width);
    for (size_t place = 0; place < counts.size(); ++place) std::printf(place ? ", %zu" : "%zu", counts[place]);
    std::puts("]}");
}

int run(const std::string& model, const std::string& picture) {
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "instances");
    Ort::Session session(environment, model.c_str(), Ort::SessionOptions{});
    Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session.GetModelMetadata();
    const auto meta = [&](const char* key) {
        const auto text = metadata.LookupCustomMetadataMapAllocated(key, allocator);
        return text ? std::string(text.get()) : std::string("null");
    };
    const auto classes = strings_of(meta("classes"));
    const auto mean = numbers_of(meta("mean")), deviation = numbers_of(meta("std")), sides = numbers_of(meta("canvas"));
    if (classes.empty() || mean.size() != 3 || deviation.size() != 3 || sides.size() != 2)
        throw std::runtime_error(model + ": expected a model of RGB images that `mask2former-dinov3 export` wrote");

    // The image on its canvas, top left, normalised.
    Size image{}, canvas{int(sides[0] + 31) / 32 * 32, int(sides[1] + 31) / 32 * 32};
    const auto planes = read_ppm(picture, image);
    double scale = std::min(sides[0] / image.height, sides[1] / image.width);
    const std::string way = meta("image_scale");
    if (way != "null" && way != "\"fit\"") {
        const double own = way == "\"native\"" ? 1.0 : numbers_of(way).at(0);
        if (own > scale) throw std::runtime_error("expected an image no larger than the canvas: cut it into tiles");
        scale = own;
    }
    const Size real{std::max(1, int(image.height * scale + 0.5)), std::max(1, int(image.width * scale + 0.5))};
    const size_t area = size_t(canvas.height) * canvas.width;
    Plane values(3 * area);
    std::unique_ptr<bool[]> is_real(new bool[area]());
    for (int channel = 0; channel < 3; ++channel) {
        const auto fitted = resize(planes[channel].data(), image.width, image, real, true);
        for (int y = 0; y < real.height; ++y)
            for (int x = 0; x < real.width; ++x) {
                const double value = std::nearbyint(fitted[size_t(y) * real.width + x]) / 255;
                values[channel * area + size_t(y) * canvas.width + x] = float((value - mean[channel]) / deviation[channel]);
                is_real[size_t(y) * canvas.width + x] = true;
            }
    }

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t shape[] = {1, 3, canvas.height, canvas.width}, mask_shape[] = {1, canvas.height, canvas.width};
    Ort::Value inputs[] = {Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape, 4),
                           Ort::Value::CreateTensor<bool>(memory, is_real.get(), area, mask_shape, 3)};
    const char* names[] = {"pixel_values", "pixel_mask"};
    const char* wanted[] = {"class_queries_logits", "masks_queries_logits"};
    const auto outputs = session.Run(Ort::RunOptions{nullptr}, names, inputs, 2, wanted, 2);
    const float* logits = outputs[0].GetTensorData<float>();
    const auto dims = outputs[1].GetTensorTypeAndShapeInfo().GetShape();  // 1, queries, height, width
    const int queries = int(dims[1]), count = int(classes.size());
    const Size small{int(dims[2]), int(dims[3])};

    // One threshold for all classes, one for each by name, or none: 0.5.
    const auto named = strings_of(meta("score_threshold"));
    const auto given = numbers_of(meta("score_threshold"));
    std::vector<float> least(count, given.empty() || !named.empty() ? 0.5f : float(given[0]));
    for (size_t place = 0; place < named.size(); ++place)
        least.at(std::find(classes.begin(), classes.end(), named[place]) - classes.begin()) = float(given.at(place));

    // Scores are reported as sigmoid(scale * logit(score) + shift); thresholds are those of reported scores.
    const auto calibration = numbers_of(meta("score_calibration"));
    const auto reported = [&](double score) {
        if (calibration.empty()) return float(score);
        return float(1 / (1 + std::exp(-calibration[0] * std::log(score / (1 - score)) - calibration[1])));
    };

    struct Candidate { float probability; int query, label; };
    std::vector<Candidate> candidates;
    for (int query = 0; query < queries; ++query) {
        const float* row = logits + size_t(query) * (count + 1);
        const float highest = *std::max_element(row, row + count + 1);
        float sum = 0;  // of all classes and "no object", the last
        for (int label = 0; label <= count; ++label) sum += std::exp(row[label] - highest);
        for (int label = 0; label < count; ++label) {
            const float probability = std::exp(row[label] - highest) / sum;
            if (reported(probability) >= least[label]) candidates.push_back({probability, query, label});
        }
    }
    const auto better = [](const auto& one, const auto& other) { return one.probability > other.probability; };
    std::stable_sort(candidates.begin(), candidates.end(), better);
    if (candidates.size() > size_t(queries)) candidates.resize(queries);

    std::vector<Instance> found;
    for (const auto& [probability, query, label] : candidates) {
        const float* map = outputs[1].GetTensorData<float>() + size_t(query) * small.height * small.width;
        const auto on_canvas = resize(map, small.width, small, canvas, false);
        const auto on_image = resize(on_canvas.data(), canvas.width, real, image, false);  // without the padding
        Instance one{0, label, std::vector<char>(on_image.size())};
        double certainty = 0, pixels = 0;
        for (size_t place = 0; place < on_image.size(); ++place)
            if (on_image[place] > 0) one.mask[place] = 1, ++pixels, certainty += 1 / (1 + std::exp(-on_image[place]));
        one.score = pixels ? reported(probability * certainty / pixels) : 0;
        if (pixels && one.score >= least[label]) found.push_back(std::move(one));
    }
    std::stable_sort(found.begin(), found.end(), [](const auto& one, const auto& other) { return one.score > other.score; });

    // An instance that lies in a better one of its class by more than this fraction is the same object found twice.
    const auto limit = numbers_of(meta("copy_overlap"));
    std::vector<const Instance*> kept;
    for (const auto& one : found) {
        const bool is_copy = !limit.empty() && std::any_of(kept.begin(), kept.end(), [&](const Instance* other) {
            double shared = 0, pixels = 0;
            for (size_t place = 0; place < one.mask.size(); ++place)
                pixels += one.mask[place], shared += one.mask[place] && other->mask[place];
            return other->label == one.label && shared > limit[0] * pixels;
        });
        if (is_copy) continue;
        kept.push_back(&one);
        print(one, image, classes[one.label]);
    }
    return 0;
}

int main(int count, char** words) try {
    if (count != 3) throw std::runtime_error("expected a model and an image: instances model.onnx image.ppm");
    return run(words[1], words[2]);
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
