-- A worker says what it holds, in an index that has not opened yet; and that it still holds what it is settling.
-- ARGV: now, lines, consumer, then for each: line, entry, id.
-- Gives: epoch, then the entry of each that had to be entered anew ('' if it is as it was, or cannot be).
even_when_full()
local consumer = ARGV[3]
local name, is_open = epoch_of_this_run()
if not name then return {''} end
local answer = {name}
for i = 4, #ARGV, 3 do
  local line, entry, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local stream, now_in = of(line, 'jobs'), ''
  if #held_by(line, {{entry, id}}, consumer) > 0 then
    hold(line, {entry}, consumer)
  elseif not is_open then
    now_in = add(line, {id})[1] or ''
    local read
    while now_in ~= '' and read ~= now_in do
      read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', stream, '>')[1][2][1][1]
      -- Somebody has put it there by hand.
      if read ~= now_in then redis.call('XCLAIM', stream, GROUP, FREE, '0', read, 'JUSTID') end
    end
    if now_in ~= '' then
      hold(line, {now_in}, consumer)
      redis.call('HSET', index, id, held_at(line, now_in, consumer))
    end
  end
  answer[#answer + 1] = now_in
end
return answer
