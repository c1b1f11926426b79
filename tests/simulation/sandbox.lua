-- The globals a function library sees, as on the real server. `call` reaches the memory server.
local call, pcall_ = ...

local names = {
  'assert', 'error', 'getmetatable', 'ipairs', 'math', 'next', 'pairs', 'pcall', 'rawequal', 'rawget', 'rawset',
  'select', 'setmetatable', 'string', 'table', 'tonumber', 'tostring', 'type', 'unpack', 'xpcall',
}

-- One word is no code: the server puts ERR before it.
local function error_reply(text)
  if string.sub(text, 1, 1) == '-' then text = string.sub(text, 2) end
  if not string.find(text, ' ', 1, true) then text = 'ERR ' .. text end
  return {err = text}
end

local function readonly(fields)
  return setmetatable({}, {
    __index = function(_, name)
      local value = fields[name]
      if value == nil then error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2) end
      return value
    end,
    __newindex = function() error('Attempt to modify a readonly table', 2) end,
  })
end

-- Loads a library and returns what it registered: {name, callback, flags}*; of what does not compile, the problem.
local function load_library(code)
  local registered = {}
  local function register_function(name, callback)
    local entry = type(name) == 'table' and name or {function_name = name, callback = callback}
    registered[#registered + 1] = {entry.function_name, entry.callback, entry.flags or {}}
  end
  local globals = {}
  for _, name in ipairs(names) do globals[name] = _G[name] end
  globals.math = {}
  for name, value in pairs(math) do globals.math[name] = value end
  globals.math.random = nil  -- what it says would depend on what this process has simulated before
  globals.redis = {
    call = call,
    pcall = pcall_,
    error_reply = error_reply,
    status_reply = function(text) return {ok = text} end,
    register_function = register_function,
  }
  globals.server = globals.redis
  local chunk, problem = loadstring(code, '@user_function')
  if not chunk then return problem end
  setfenv(chunk, readonly(globals))()
  return registered
end

-- The line of the library that is running, for the text of an error.
local function line()
  for level = 2, 20 do
    local info = debug.getinfo(level, 'Sl')
    if not info then return -1 end
    if info.source == '@user_function' then return info.currentline end
  end
  return -1
end

return load_library, line
